#!/usr/bin/env bash
# Makes the self-checking guest: Debian's cloud kernel and an initramfs of busybox and ticker.c, which checks its own
# memory for ever and prints TICK n OK or BAD on the serial port. docs/qemu.md tells how to run, clone and move it.
# Needs: cc with the static C library, busybox-static, cpio, dpkg, apt (the kernel is downloaded and unpacked, not installed).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=${CARGO_TARGET_DIR:-$here/../../target}/guests
out=$base/ticker

die() {
  echo "make-ticker: $*" >&2
  exit 1
}

case ${1:-} in
  '') ;;
  --out) [ $# = 2 ] || die "--out needs a directory" && out=$2 ;;
  *) echo "usage: make-ticker.sh [--out DIR]   leaves DIR/vmlinuz and DIR/initrd (default: target/guests/ticker)" && exit 0 ;;
esac
for tool in cc cpio dpkg flock; do command -v $tool >/dev/null || die "$tool is missing"; done
busybox=$(command -v busybox) || die "busybox is missing (package busybox-static)"
if ldd "$busybox" >/dev/null 2>&1; then die "$busybox is not static (package busybox-static)"; fi

mkdir -p "$base/cache/debs" "$out"
out=$(cd "$out" && pwd)
exec 9>"$base/cache/ticker.lock"
flock 9
key=$(cat "${BASH_SOURCE[0]}" "$here/ticker.c" "$here/ticker-init" | cksum | cut -d' ' -f1)
if [ "$(cat "$out/key" 2>/dev/null)" = "$key" ] && [ -e "$out/vmlinuz" ] && [ -e "$out/initrd" ]; then
  echo "make-ticker: $out has it already"
  exit 0
fi

# The kernel that make-guests.sh has unpacked, else the one that apt names now.
kernel_package() {
  apt-cache show linux-image-cloud-amd64 2>/dev/null | sed -n 's/^Depends: \([^ ,]*\).*/\1/p' | sort -V | head -n 1
}
package=$(find "$base/cache" -maxdepth 1 -type d -name 'linux-image-*' -printf '%f\n' | sort -V | head -n 1)
if [ -z "$package" ]; then
  package=$(kernel_package)
  if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
    apt-get -q update >"$base/cache/update.log" 2>&1 || true
    package=$(kernel_package)
  fi
  [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64 (run apt-get update)"
  (cd "$base/cache/debs" && apt-get -q download "$package") >"$base/cache/download.log" 2>&1 || die "cannot download $package"
  mkdir -p "$base/cache/$package.part"
  dpkg -x "$base/cache/debs/$package"_*.deb "$base/cache/$package.part"
  mv "$base/cache/$package.part" "$base/cache/$package"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,modules,proc,sys,dev,tmp}
cp "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 755 "$here/ticker-init" "$root/init"
# Modules of a virtual disk and card, in the order in which they need each other; some kernels have some of them built in.
number=0
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net; do
  file=$(find "$base/cache/$package/lib/modules" -name "$module.ko" -o -name "$module.ko.xz" | head -n 1)
  number=$((number + 1))
  case $file in
    *.xz) xz -dc "$file" >"$root/modules/$number-$module.ko" ;;
    *.ko) cp "$file" "$root/modules/$number-$module.ko" ;;
  esac
done
cc -O2 -static -o "$root/ticker" "$here/ticker.c"
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) >"$out/initrd"
cp "$base/cache/$package/boot/vmlinuz-${package#linux-image-}" "$out/vmlinuz"
echo "$key" >"$out/key"
echo "make-ticker: $out: ${package#linux-image-}"
