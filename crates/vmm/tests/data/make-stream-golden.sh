#!/usr/bin/env bash
# Makes stream-*.extents from a real QEMU: stopped VMs of 1 to 4 MiB without an operating system, migrated to a file.
# Kept are the stream's own bytes; the pages' (firmware among them) are left out and read as zeros.
# Layout, little-endian: u64 length of the whole stream, then { u64 offset, u32 length, bytes }.
set -euo pipefail
out=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() {
  printf '%s\n' "$1" >&"$qmp_in"
  while IFS= read -r -t 10 answer <&"$qmp_out"; do
    case $answer in *'"return":'*) return 0 ;; *'"error":'*) echo "$answer" >&2 && exit 1 ;; esac
  done
  exit 1
}

# One stream: its name, the capability that is on (or ''), QEMU's arguments.
record() {
  local name=$1 capability=$2 qemu qmp_in qmp_out answer
  shift 2
  coproc QEMU { exec qemu-system-x86_64 -accel tcg -nodefaults -display none -qmp stdio "$@"; }
  qemu=$QEMU_PID qmp_out=${QEMU[0]} qmp_in=${QEMU[1]}
  run '{"execute":"qmp_capabilities"}'
  if [ -n "$capability" ]; then
    run "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":[{\"capability\":\"$capability\",\"state\":true}]}}"
  fi
  run "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"file:$work/stream\"}}"
  for _ in {1..100}; do
    run '{"execute":"query-migrate"}'
    case $answer in *'"completed"'*) break ;; *'"failed"'*) echo "$name: $answer" >&2 && exit 1 ;; esac
    sleep 0.05
  done
  run '{"execute":"quit"}'
  wait "$qemu" || true
  without_pages "$work/stream" "$out/stream-$name.extents"
  rm "$work/stream"
  stat -c '%n %s bytes' "$out/stream-$name.extents"
}

# Follows section ram from record to record.
without_pages() {
  perl -e '
    use strict; use warnings;
    my ($in, $out) = @ARGV;
    open my $f, "<:raw", $in or die; local $/; my $d = <$f>;
    my $start = index($d, "\x03ram\0\0\0\0\0\0\0\x04");
    my $ram = unpack("N", substr($d, $start - 4, 4));
    my ($at, $from) = ($start + 12, 0);
    my $gpa = index(substr($d, 0, $start), "x-ignore-shared") >= 0 ? 8 : 0;
    my $result = pack("Q<", length $d);
    my $keep = sub { my ($a, $b) = @_; $result .= pack("Q< L<", $a, $b - $a) . substr($d, $a, $b - $a) if $b > $a; };
    my $counted = sub { $at += 1 + unpack("C", substr($d, $at, 1)); };
    SECTION: while (1) {
      while (1) {
        my $head = unpack("Q>", substr($d, $at, 8)); $at += 8;
        my $flags = $head & 0xfff;
        if ($flags & 0x10) { $at += 5; last; }
        if ($flags & 0x04) {
          my $left = $head & ~0xfff;
          while ($left > 0) { $counted->(); $left -= unpack("Q>", substr($d, $at, 8)); $at += 8 + $gpa; }
          next;
        }
        $counted->() unless $flags & 0x20;
        if ($flags & 0x02) { $at++; next; }
        die "flags $flags" unless $flags & 0x08;
        $keep->($from, $at); $at += 4096; $from = $at;
      }
      # The next section of RAM, with early devices skipped; none, and the rest is the tail.
      for my $kind ("\x02", "\x03") {
        my $next = index($d, $kind . pack("N", $ram), $at);
        if ($next >= 0 && ($next == $at || $kind eq "\x02")) { $at = $next + 5; next SECTION; }
      }
      last;
    }
    $keep->($from, length $d);
    open my $o, ">:raw", $out or die; print {$o} $result;
  ' "$1" "$2"
}

tiny=microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off
# Each in a shell of its own, as a shell has one coprocess.
(record plain '' -m 1 -S -machine $tiny)
(record ignore-shared x-ignore-shared -m 1 -S -machine $tiny,memory-backend=ram \
  -object "memory-backend-file,id=ram,size=1M,mem-path=$work/ram,share=on")
(record background background-snapshot -m 4 -machine $tiny,suppress-vmdesc=on)
# A device whose state goes ahead of the pages.
(record early '' -m 4,maxmem=260M -S -machine q35,suppress-vmdesc=on,vmport=off,hpet=off,i8042=off,smbus=off,sata=off,pit=off \
  -object memory-backend-ram,id=more,size=128M -device virtio-mem-pci,memdev=more,requested-size=0)
