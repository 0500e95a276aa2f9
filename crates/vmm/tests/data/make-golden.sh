#!/usr/bin/env bash
# Makes mapped-ram-microvm.extents from a real QEMU: a stopped microvm without an operating system, saved by mapped-ram.
# Kept are the stream's own bytes: header, block list, bitmaps, device state. The pages (firmware among them) are left
# out and read as zeros. Layout, little-endian: u64 length of the whole file, then { u64 offset, u32 length, bytes }.
set -euo pipefail
out=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/mapped-ram-microvm.extents
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

coproc QEMU { exec qemu-system-x86_64 -accel tcg -m 4 -nodefaults -display none -S -qmp stdio \
  -machine microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off; }
run() {
  printf '%s\n' "$1" >&"${QEMU[1]}"
  while IFS= read -r -t 10 answer <&"${QEMU[0]}"; do
    case $answer in *'"return":'*) return 0 ;; *'"error":'*) echo "$answer" >&2 && exit 1 ;; esac
  done
  exit 1
}
run '{"execute":"qmp_capabilities"}'
run '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"mapped-ram","state":true}]}}'
run "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"file:$work/image\"}}"
for _ in {1..100}; do
  run '{"execute":"query-migrate"}'
  case $answer in *'"completed"'*) break ;; esac
  sleep 0.05
done
qemu=$QEMU_PID
run '{"execute":"quit"}'
wait "$qemu" || true

perl -e '
  use strict; use warnings;
  my ($in, $out) = @ARGV;
  open my $f, "<:raw", $in or die; local $/; my $d = <$f>;
  # From the first block on, the list is followed from header to header.
  my $list = index($d, "\x03ram\0\0\0\0\0\0\0\x04") + 12;
  my $left = unpack("Q>", substr($d, $list, 8)) & ~0xfff;
  my ($from, $at) = (0, $list + 8);
  my $result = pack("Q<", length $d);
  my $keep = sub { my ($a, $b) = @_; $result .= pack("Q< L<", $a, $b - $a) . substr($d, $a, $b - $a); };
  while ($left > 0) {
    my $name = unpack("C", substr($d, $at, 1));
    my ($len, undef, undef, $bitmap, $pages) = unpack("Q> L> Q> Q> Q>", substr($d, $at + 1 + $name, 36));
    $keep->($from, $bitmap + int(($len / 4096 + 63) / 64) * 8);
    $from = $at = $pages + $len;
    $left -= $len;
  }
  $keep->($from, length $d);
  open my $o, ">:raw", $out or die; print {$o} $result;
' "$work/image" "$out"
stat -c '%n %s bytes' "$out"
