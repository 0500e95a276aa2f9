#!/usr/bin/env bash
# Makes what live guests of four workloads and two kernels are started from (benches/qemu/evacuate.py does): for each kernel an
# initramfs with make-guests.sh's workloads, which go on working here, and with the ticker, which checks memory beside them.
# Needs what make-guests.sh and make-ticker.sh need.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=${CARGO_TARGET_DIR:-$here/../../target}/guests

[ $# = 0 ] || { echo "usage: make-mix.sh   leaves target/guests/mix/{KERNEL.vmlinuz,KERNEL.initrd,root.ext4}" && exit 0; }
"$here/make-guests.sh" --set small
"$here/make-ticker.sh"
out=$base/mix
mkdir -p "$out"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# Files of a later archive replace those of an earlier one.
(cd "$root" && cpio -i --quiet -E <(echo ticker) <"$base/ticker/initrd")
install -m 755 "$here/live" "$root/live"
{
  head -n -1 "$here/heap.pl"
  cat "$here/heap-live.pl"
} >"$root/heap.pl"
(cd "$root" && find . -type f | LC_ALL=C sort | cpio -o -H newc --quiet) >"$root.cpio"
while read -r package; do
  # Each archive is a whole number of 512-byte blocks; the kernel takes them one after the other.
  cat "$base/cache/$package.cpio" "$root.cpio" >"$out/$package.initrd"
  cp "$base/cache/$package/boot/vmlinuz-${package#linux-image-}" "$out/$package.vmlinuz"
done <"$base/cache/kernels"
rm "$root.cpio"
ln -sf ../cache/root.ext4 "$out/root.ext4"
echo "make-mix: $out"
