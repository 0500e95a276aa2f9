#!/usr/bin/env bash
# Makes memory images of real Debian Linux guests, for tests, demonstrations and measurements on real page contents.
# docs/images.md tells what is in them. Needs: qemu-system-x86 (>= 9.0 for mapped-ram), busybox-static, e2fsprogs, cpio,
# xz, and Debian's package manager for the kernels and the guests' files (downloaded and unpacked, never installed).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=${CARGO_TARGET_DIR:-$here/../../target}/guests

usage() {
  cat <<TEXT
usage: make-guests.sh [--set small|full] [--out DIR] [--count N] [--memory MiB] [--jobs N] [--timeout S] [--force]

  --set small    4 guests of 160 MiB (default): idle, files, heap, churn over two kernels; about 30 s on two cores
  --set full     12 guests of 256 MiB
  --count N      so many guests instead; workloads and kernels are cycled through
  --memory MiB   so much memory for each guest instead; at least 128
  --out DIR      where the images and guests.json go (default: target/guests/SET)
  --jobs N       guests run at a time (default: number of CPUs)
  --timeout S    a guest that is not ready after so many seconds is killed and the run fails (default: 90)
  --force        make the images again, although DIR has them already

Images of the same parameters are made once. Packages and kernels are kept under target/guests/cache.
TEXT
}

die() {
  echo "make-guests: $*" >&2
  exit 1
}

set_name=small count='' memory='' out='' jobs=$(nproc) timeout_s=90 force=no
while [ $# -gt 0 ]; do
  case $1 in
    --set | --out | --count | --memory | --jobs | --timeout)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --set) set_name=$2 ;;
        --out) out=$2 ;;
        --count) count=$2 ;;
        --memory) memory=$2 ;;
        --jobs) jobs=$2 ;;
        --timeout) timeout_s=$2 ;;
      esac
      shift 2
      ;;
    --force) force=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && die "unknown option $1" ;;
  esac
done
case $set_name in
  small) : "${count:=4}" "${memory:=160}" ;;
  full) : "${count:=12}" "${memory:=256}" ;;
  *) die "--set is small or full, not $set_name" ;;
esac
for number in "$count" "$memory" "$jobs" "$timeout_s"; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || die "$number is not a number from 1 to 99999"
done
[ "$memory" -ge 128 ] && [ "$memory" -le 3072 ] || die "--memory is 128 to 3072 MiB"

for tool in qemu-system-x86_64 mke2fs cpio xz dpkg flock; do
  command -v $tool >/dev/null || die "$tool is missing"
done
busybox=$(command -v busybox) || die "busybox is missing (package busybox-static)"
if ldd "$busybox" >/dev/null 2>&1; then die "$busybox is not static (package busybox-static)"; fi

cache=$base/cache
mkdir -p "$cache" "${out:=$base/$set_name}"
cache=$(cd "$cache" && pwd)
out=$(cd "$out" && pwd)
# One run at a time: another one waits here, and then finds the images made.
exec 9>"$cache/lock"
flock 9

# ---- cache: kernels, package tree, disk, initramfs -------------------------------------------------------------------

tree_packages=(libc6 libcrypt1 libgcc-s1 gcc-12-base perl-base perl-modules-5.36 coreutils bash dpkg tcc libc6-dev
  linux-libc-dev libcrypt-dev)

# The packages of up to two kernels: the newest of each series (6.1, 6.12, …), then older packages of a series.
kernel_packages() {
  local all
  all=$(apt-cache show linux-image-cloud-amd64 2>/dev/null | sed -n 's/^Depends: \([^ ,]*\).*/\1/p' | sort -Vru)
  {
    awk -F'[-.]' '!seen[$3 "." $4]++' <<<"$all"
    echo "$all"
  } | awk 'NF && !seen[$0]++' | head -n 2 | sort -V
}

download() {
  (cd "$cache/debs" && apt-get -q download "$@") >"$cache/download.log" 2>&1 ||
    { tail -n 3 "$cache/download.log" >&2 && return 1; }
}

make_cache() {
  mkdir -p "$cache/debs"
  local kernels package have
  kernels=$(kernel_packages)
  if [ -z "$kernels" ] && [ "$(id -u)" = 0 ]; then
    apt-get -q update >"$cache/update.log" 2>&1 || true
    kernels=$(kernel_packages)
  fi
  [ -n "$kernels" ] || die "apt knows no linux-image-cloud-amd64 (run apt-get update)"
  for package in $kernels; do
    have=("$cache/debs/$package"_*.deb)
    [ -e "${have[0]}" ] || download "$package" || die "cannot download $package"
    have=("$cache/debs/$package"_*.deb)
    rm -rf "$cache/$package"
    mkdir "$cache/$package"
    dpkg -x "${have[0]}" "$cache/$package"
  done

  rm -rf "$cache/tree" "$cache/root.ext4"
  mkdir -p "$cache/tree"/{proc,dev,sys,tmp}
  for package in "${tree_packages[@]}"; do
    have=("$cache/debs/$package"_*.deb)
    [ -e "${have[0]}" ] || download "$package" || { echo "make-guests: goes on without $package" >&2 && continue; }
    have=("$cache/debs/$package"_*.deb)
    dpkg -x "${have[0]}" "$cache/tree"
  done
  [ -x "$cache/tree/usr/bin/perl" ] || die "the package tree has no perl"
  mke2fs -q -t ext4 -b 4096 -O ^has_journal -m 0 -L guestroot -d "$cache/tree" "$cache/root.ext4" 192M >/dev/null
  echo "$kernels" >"$cache/kernels"
}

# An initramfs for each kernel: busybox, /init, and the modules of a virtio disk (some kernels have them built in).
make_initramfs() {
  local package=$1 root module file
  root=$(mktemp -d "$cache/initramfs.XXXXXX")
  mkdir -p "$root"/{bin,modules,proc,sys,dev,tmp,mnt}
  cp "$busybox" "$root/bin/busybox"
  ln -s busybox "$root/bin/sh"
  install -m 755 "$here/init" "$root/init"
  install -m 644 "$here/heap.pl" "$root/heap.pl"
  for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    file=$(find "$cache/$package/lib" -name "$module.ko" -o -name "$module.ko.xz" | head -n 1)
    case $file in
      *.xz) xz -dc "$file" >"$root/modules/$module.ko" ;;
      *.ko) cp "$file" "$root/modules/" ;;
    esac
  done
  (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) >"$cache/$package.cpio"
  rm -rf "$root"
}

# ---- one guest --------------------------------------------------------------------------------------------------------

# Sends one QMP command; its answer is left in `answer`. Events and the greeting are passed over.
qmp() {
  local line
  printf '%s\n' "$1" >&"$qmp_in" || return 1
  while IFS= read -r -t 30 line <&"$qmp_out"; do
    case $line in
      *'"return":'*) answer=$line && return 0 ;;
      *'"error":'*) echo "qmp: $1: $line" >&2 && return 1 ;;
    esac
  done
  return 1
}

save_mapped_ram() {
  local path=$1 tries=0
  qmp '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"mapped-ram","state":true}]}}'
  qmp "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"file:$path\"}}"
  while [ $((tries += 1)) -lt 300 ]; do
    qmp '{"execute":"query-migrate"}'
    case $answer in
      *'"status": "completed"'*) return 0 ;;
      *'"status": "failed"'*) break ;;
    esac
    sleep 0.1
  done
  echo "mapped-ram: $answer" >&2
  return 1
}

# Boots guest number $1, waits until its workload is ready, stops it, and leaves its memory as $name.raw. The file is the
# guest's RAM itself, shared with QEMU: nothing is copied, and once the guest is stopped nothing changes it.
run_guest() {
  local index=$1 name=$2 package=$3 workload=$4
  local raw=$out/$name.raw log=$out/$name.log qemu qmp_in qmp_out answer deadline
  rm -f "$raw" "$out/$name.mapped-ram" "$log"
  # q35 and not microvm: without an ACPI timer a loaded host makes some kernels misjudge the TSC and hang.
  coproc QEMU {
    exec 9>&-
    exec qemu-system-x86_64 -accel tcg -cpu max -m "$memory" -nodefaults -no-reboot -display none \
      -machine q35,memory-backend=pc.ram,vmport=off \
      -object "memory-backend-file,id=pc.ram,size=${memory}M,mem-path=$raw,share=on" \
      -kernel "$cache/$package/boot/vmlinuz-${package#linux-image-}" -initrd "$cache/$package.cpio" \
      -append "console=ttyS0 quiet guest.workload=$workload guest.seed=$index guest.mib=$((memory * 35 / 100))" \
      -drive "if=none,id=root,file=$cache/root.ext4,format=raw,readonly=on" -device virtio-blk-pci,drive=root \
      -serial "file:$log" -qmp stdio 2>"$out/$name.err"
  }
  qemu=$QEMU_PID qmp_out=${QEMU[0]} qmp_in=${QEMU[1]}
  # shellcheck disable=SC2064 # this guest's process id, now
  trap "kill $qemu 2>/dev/null || true" EXIT

  deadline=$((SECONDS + timeout_s))
  until grep -qs 'GUEST READY' "$log"; do
    if grep -qs 'GUEST FAILED' "$log" || ! kill -0 "$qemu" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
      echo "make-guests: $name is not ready: $(tail -n 3 "$log" "$out/$name.err" 2>/dev/null)" >&2
      return 1
    fi
    sleep 0.1
  done
  # Let what the guest wrote about being ready settle, then take the memory of a stopped machine.
  sleep 0.3
  qmp '{"execute":"qmp_capabilities"}'
  qmp '{"execute":"stop"}'
  if [ "$index" -le 2 ]; then save_mapped_ram "$out/$name.mapped-ram"; fi
  qmp '{"execute":"quit"}'
  wait "$qemu" 2>/dev/null || true
  trap - EXIT
  # A Firecracker memory file is the same bytes without holes.
  if [ "$index" -eq 1 ]; then cp --sparse=never "$raw" "$out/$name.firecracker"; fi
  [ -s "$out/$name.err" ] || rm -f "$out/$name.err"
  echo "make-guests: $name: $(grep -o 'GUEST READY.*' "$log" | tr -d '\r')"
}

# ---- the set ----------------------------------------------------------------------------------------------------------

[ -e "$cache/kernels" ] || make_cache
mapfile -t kernels <"$cache/kernels"
made_by=$(cat "$here/init" "$here/heap.pl" "$cache/kernels" | cksum | cut -d' ' -f1)
key="set $set_name count $count memory $memory made-by $made_by"
if [ $force = no ] && [ -e "$out/guests.json" ] && grep -qF "\"key\": \"$key\"" "$out/guests.json"; then
  echo "make-guests: $out has them already"
  exit 0
fi
rm -f "$out/guests.json"
for package in "${kernels[@]}"; do make_initramfs "$package"; done

workloads=(idle files heap churn)
names=() packages=() kinds=()
for ((i = 0; i < count; i++)); do
  # The second round gives each workload the other kernel; later rounds repeat both with other seeds.
  package=${kernels[$(((i + i / ${#workloads[@]}) % ${#kernels[@]}))]}
  workload=${workloads[$((i % ${#workloads[@]}))]}
  names+=("$(printf 'g%02d-%s' $((i + 1)) "$workload")")
  packages+=("$package")
  kinds+=("$workload")
done

# Whatever ends this script ends its guests: each one's shell kills its own QEMU when it exits.
# shellcheck disable=SC2046 # process ids are words
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
failed=0 running=0
for ((i = 0; i < count; i++)); do
  if [ $running -ge "$jobs" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  [ $failed = 0 ] || break
  (set -e && run_guest $((i + 1)) "${names[$i]}" "${packages[$i]}" "${kinds[$i]}") &
  running=$((running + 1))
done
while [ $running -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
[ $failed = 0 ] || die "not all guests could be made"

# Paths are relative to guests.json. `also` has other files of the same stopped guest.
{
  printf '{\n  "version": 1,\n  "key": "%s",\n  "memory_mib": %d,\n  "guests": [\n' "$key" "$memory"
  for ((i = 0; i < count; i++)); do
    name=${names[$i]}
    printf '    {"name": "%s", "kernel": "%s", "workload": "%s", "path": "%s.raw", "format": "raw", "bytes": %d, "also": [' \
      "$name" "${packages[$i]#linux-image-}" "${kinds[$i]}" "$name" "$(stat -c %s "$out/$name.raw")"
    separator=''
    for form in mapped-ram firecracker; do
      [ -e "$out/$name.$form" ] || continue
      format=$form
      [ $form = mapped-ram ] && format=qemu-mapped-ram
      printf '%s{"path": "%s.%s", "format": "%s", "bytes": %d}' "$separator" "$name" "$form" "$format" \
        "$(stat -c %s "$out/$name.$form")"
      separator=', '
    done
    printf ']}%s\n' "$([ $((i + 1)) -lt "$count" ] && echo ,)"
  done
  printf '  ]\n}\n'
} >"$out/guests.json.part"
mv "$out/guests.json.part" "$out/guests.json"
echo "make-guests: $out/guests.json"
