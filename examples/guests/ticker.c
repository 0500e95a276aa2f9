/* A guest's own judge of its memory. Fills a region with patterns that follow from a seed, then for ever: checks some
 * random pages and rewrites half of them in a next generation, reads a piece of a file and compares it with what the
 * file had at first, and tells on standard output
 *
 *   TICK n OK written=PAGES        or        BAD page P …   and   TICK n BAD written=PAGES
 *
 * A page that is lost, stale, doubled or at another place than it belongs to cannot pass: page number and generation
 * are part of the pattern, and the generations are kept apart from the pages. Every SWEEP ticks all pages are checked.
 * Once BAD, a run stays BAD. With a disk it does the same to the disk's first 2 MiB, past the page cache: what it must have there is
 * remembered in memory, so that a disk of another moment than the memory's shows itself, too (BAD disk page).
 *
 * ticker MIB SEED PAGES-PER-TICK PAUSE-MS FILE [DISK]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, SWEEP = 64, PIECE = 16 * PAGE, PIECES_MAX = 4096, DISK_PAGES = 512 };

static uint64_t seed;
static uint64_t bad;

static uint64_t mix(uint64_t x) {
    x ^= x >> 30; x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27; x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t word(uint64_t page, uint64_t generation, uint64_t at) {
    return mix(seed * 0x9e3779b97f4a7c15u + page * 31 + generation * 1000003) + at * 0x9e3779b97f4a7c15u;
}

static void fill(uint64_t *page, uint64_t number, uint64_t generation) {
    uint64_t key = word(number, generation, 0);
    page[0] = number;
    page[1] = generation;
    for (uint64_t at = 2; at < WORDS; at++) page[at] = key + at * 0x9e3779b97f4a7c15u;
}

static void check(const char *what, const uint64_t *page, uint64_t number, uint64_t generation) {
    uint64_t key = word(number, generation, 0), wrong = page[0] ^ number;
    wrong |= page[1] ^ generation;
    for (uint64_t at = 2; at < WORDS; at++) wrong |= page[at] ^ (key + at * 0x9e3779b97f4a7c15u);
    if (wrong && bad++ < 8)
        printf("BAD %s %llu generation %llu has %llx/%llx\n", what, (unsigned long long)number,
               (unsigned long long)generation, (unsigned long long)page[0], (unsigned long long)page[1]);
}

static uint64_t sums[PIECES_MAX];

/* Reads one piece of the file; the first time round its sum is kept, later it is compared. */
static void read_file(const char *name, uint64_t turn) {
    static uint64_t buffer[PIECE / 8];
    int file = open(name, O_RDONLY);
    if (file < 0) { perror(name); exit(1); }
    off_t length = lseek(file, 0, SEEK_END);
    uint64_t pieces = (uint64_t)length / PIECE;
    if (pieces > PIECES_MAX) pieces = PIECES_MAX;
    if (pieces) {
        uint64_t piece = turn % pieces, sum = 1;
        if (pread(file, buffer, PIECE, (off_t)(piece * PIECE)) != PIECE) { bad++; puts("BAD read"); }
        for (uint64_t at = 0; at < PIECE / 8; at++) sum = sum * 0x9e3779b97f4a7c15u + buffer[at];
        sum |= 1;
        if (sums[piece] && sums[piece] != sum) { bad++; printf("BAD file piece %llu\n", (unsigned long long)piece); }
        sums[piece] = sum;
    }
    close(file);
}

static uint64_t written_at[DISK_PAGES];

/* Checks a page of the disk, if it was written before. */
static void check_disk(int disk, uint64_t *buffer, uint64_t page) {
    if (!written_at[page]) return;
    if (pread(disk, buffer, PAGE, (off_t)(page * PAGE)) != PAGE) { bad++; puts("BAD disk read"); return; }
    check("disk page", buffer, page, written_at[page]);
}

/* Checks some random pages of the disk and writes them anew. */
static void use_disk(int disk, uint64_t tick) {
    static _Alignas(PAGE) uint64_t buffer[WORDS];
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t page = mix(tick * 4 + i) % DISK_PAGES;
        check_disk(disk, buffer, page);
        fill(buffer, page, tick);
        if (pwrite(disk, buffer, PAGE, (off_t)(page * PAGE)) != PAGE) { bad++; puts("BAD disk write"); }
        written_at[page] = tick;
    }
    if (tick % SWEEP == 0)
        for (uint64_t page = 0; page < DISK_PAGES; page++) check_disk(disk, buffer, page);
}

int main(int argc, char **argv) {
    if (argc != 6 && argc != 7) return 2;
    int disk = argc == 7 ? open(argv[6], O_RDWR | O_DIRECT) : -1;
    if (argc == 7 && disk < 0) { printf("BAD disk %s\n", argv[6]); return 1; }
    uint64_t pages = strtoull(argv[1], 0, 10) * 256, step = strtoull(argv[3], 0, 10);
    seed = strtoull(argv[2], 0, 10);
    struct timespec pause = {.tv_sec = 0, .tv_nsec = atol(argv[4]) * 1000000L};
    uint64_t *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *generations = calloc(pages, sizeof *generations);
    if (memory == MAP_FAILED || !generations || !pages) { puts("BAD no memory"); return 1; }
    setvbuf(stdout, 0, _IOLBF, 0);
    for (uint64_t page = 0; page < pages; page++) fill(memory + page * WORDS, page, 0);
    puts("TICKER READY");
    uint64_t random = seed + 12345, written = 0;
    for (uint64_t tick = 1;; tick++) {
        for (uint64_t i = 0; i < step; i++) {
            random = mix(random + 0x9e3779b97f4a7c15u);
            uint64_t page = random % pages;
            check("page", memory + page * WORDS, page, generations[page]);
            if (random >> 63) { fill(memory + page * WORDS, page, ++generations[page]); written++; }
        }
        read_file(argv[5], tick);
        if (disk >= 0) use_disk(disk, tick);
        if (tick % SWEEP == 0)
            for (uint64_t page = 0; page < pages; page++) check("page", memory + page * WORDS, page, generations[page]);
        printf("TICK %llu %s written=%llu\n", (unsigned long long)tick, bad ? "BAD" : "OK", (unsigned long long)written);
        nanosleep(&pause, 0);
    }
}
