#!/usr/bin/env bash
# A Debian guest that works and checks its own memory, under stock QEMU, becomes four running clones on two receivers, all on this
# machine, over the loopback interface. It goes on itself. About half a minute; nothing is left behind. docs/qemu.md explains it.
#
#   cargo build --release && examples/guests/make-ticker.sh && examples/qemu-clone.sh
#
# Post-copy needs the right to use userfaultfd: root, or sysctl vm.unprivileged_userfaultfd=1.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scatter=${SCATTER:-$root/target/release/scatter}
guest=$root/target/guests/ticker
[ -x "$scatter" ] || { echo "$scatter is missing: cargo build --release" >&2; exit 1; }
[ -e "$guest/initrd" ] || { echo "$guest/initrd is missing: examples/guests/make-ticker.sh" >&2; exit 1; }

dir=$(mktemp -d /dev/shm/qemu-clone.XXXX)
children=()
cleanup() {
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap cleanup EXIT
cd "$dir"

echo "--- the source boots, and fills and checks 32 MiB of its memory"
common=(-accel tcg -cpu max -machine q35,vmport=off -m 192 -nodefaults -display none -kernel "$guest/vmlinuz" -initrd "$guest/initrd"
  -append "console=ttyS0 quiet ticker.mib=32 ticker.pause=20")
mkdir source
qemu-system-x86_64 "${common[@]}" -device vmgenid,guid=auto -serial file:source/serial -qmp unix:source/qmp.sock,server=on,wait=off &
children+=($!)
await() { # FILE WORDS: at most a minute
  for _ in $(seq 600); do
    grep -q "$2" "$1" 2>/dev/null && return
    sleep 0.1
  done
  echo "$1 never said $2" >&2
  cat "$1" >&2
  exit 1
}
await source/serial "TICK 5 OK"

echo "--- keys, and two receivers that may start this machine"
"$scatter" keys init keys >/dev/null
"$scatter" keys host keys src --role sender >/dev/null
{
  echo '[[qemu]]'
  echo 'name = "ticker"'
  echo 'end-with-receiver = true'
  printf 'args = ['
  printf '"%s", ' "${common[@]}"
  echo '"-device", "vmgenid,guid={vmgenid}", "-serial", "file:{dir}/serial"]'
} >machines.toml
for n in 1 2; do
  "$scatter" keys host keys h$n >/dev/null
  "$scatter" receive --name h$n --keys keys/h$n --listen 127.0.0.1:4708$n --interface lo --store store$n --clones "$dir/c$n" \
    --launch qemu --qemu machines.toml >h$n.log 2>&1 &
  children+=($!)
  await h$n.log listening
done

echo "--- the running guest is captured and cloned"
cat >inventory.json <<END
{ "version": 1, "name": "example", "source": { "name": "src", "rate_mbps": 1000 },
  "hosts": [
    { "name": "h1", "address": "127.0.0.1:47081", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 },
    { "name": "h2", "address": "127.0.0.1:47082", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 } ],
  "vms": [ { "name": "worker", "image": "qmp:source/qmp.sock", "memory_mib": 192, "to": { "clones": 4 }, "clones_per_host": 2,
             "launch": { "kind": "qemu" } } ],
  "multicast": { "pool": "239.77.9.0/24", "port": 47089 } }
END
"$scatter" plan inventory.json -o plan.json >/dev/null
"$scatter" clone --group plan.json --keys keys/src --interface lo 2>&1

echo "--- every clone goes on from where the source was, over more than one look at all of its memory"
for clone in c1/* c2/*; do
  ticks=0
  for _ in $(seq 600); do
    ticks=$(awk '/ OK / { n++ } END { print n + 0 }' "$clone/serial")
    [ "$ticks" -ge 70 ] && break
    sleep 0.1
  done
  if [ "$ticks" -lt 70 ]; then echo "$clone: $ticks ticks after a minute" >&2; exit 1; fi
  if grep -q BAD "$clone/serial"; then echo "$clone: BAD" >&2; exit 1; fi
  echo "$clone: $(grep 'TICK .* OK' "$clone/serial" | tail -n 1)"
done
echo "source: $(grep 'TICK .* OK' source/serial | tail -n 1)"
