# What the examples with QEMU share, to be read by them: this machine's `scatter` and guest, a directory that goes away, the guest's machine, keys
# and two receivers that may start it.
# shellcheck shell=bash disable=SC2034 # read by the examples
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scatter=${SCATTER:-$root/target/release/scatter}
guest=$root/target/guests/ticker
[ -x "$scatter" ] || { echo "$scatter is missing: cargo build --release" >&2; exit 1; }
[ -e "$guest/initrd" ] || { echo "$guest/initrd is missing: examples/guests/make-ticker.sh" >&2; exit 1; }

dir=$(mktemp -d /dev/shm/qemu-example.XXXX)
children=()
cleanup() {
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap cleanup EXIT
cd "$dir"

machine=(-accel tcg -cpu max -machine q35,vmport=off -m 192 -nodefaults -display none -kernel "$guest/vmlinuz" -initrd "$guest/initrd"
  -append "console=ttyS0 quiet ticker.mib=32 ticker.pause=20")

await() { # FILE WORDS: at most a minute
  for _ in $(seq 600); do
    grep -q "$2" "$1" 2>/dev/null && return
    sleep 0.1
  done
  echo "$1 never said $2" >&2
  cat "$1" >&2
  exit 1
}

boot() { # the source, in source/
  mkdir source
  qemu-system-x86_64 "${machine[@]}" -device vmgenid,guid=auto -serial file:source/serial -qmp unix:source/qmp.sock,server=on,wait=off &
  children+=($!)
  await source/serial "TICK 5 OK"
}

receivers() { # with these further arguments of QEMU
  "$scatter" keys init keys >/dev/null
  "$scatter" keys host keys src --role sender >/dev/null
  {
    echo '[[qemu]]'
    echo 'name = "ticker"'
    echo 'end-with-receiver = true'
    printf 'args = ['
    printf '"%s", ' "${machine[@]}" "$@"
    echo '"-device", "vmgenid,guid={vmgenid}", "-serial", "file:{dir}/serial"]'
  } >machines.toml
  for n in 1 2; do
    "$scatter" keys host keys h$n >/dev/null
    "$scatter" receive --name h$n --keys keys/h$n --listen 127.0.0.1:4708$n --interface lo --store store$n --clones "$dir/c$n" \
      --launch qemu --qemu machines.toml >h$n.log 2>&1 &
    children+=($!)
    await h$n.log listening
  done
}

plan() { # FILE VM: of the two receivers and one VM, as JSON
  cat >inventory.json <<END
{ "version": 1, "name": "example", "source": { "name": "src", "rate_mbps": 1000 },
  "hosts": [
    { "name": "h1", "address": "127.0.0.1:47081", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 },
    { "name": "h2", "address": "127.0.0.1:47082", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 } ],
  "vms": [ $2 ],
  "multicast": { "pool": "239.77.9.0/24", "port": 47089 } }
END
  "$scatter" plan inventory.json -o "$1" >/dev/null
}

check() { # DIR: the guest there goes on from where it was, over more than one look at all of its memory
  local ticks=0
  for _ in $(seq 600); do
    [ ! -e "$1/serial" ] || ticks=$(awk '/^TICK .* OK / { n++ } END { print n + 0 }' "$1/serial")
    [ "$ticks" -ge 70 ] && break
    sleep 0.1
  done
  if [ "$ticks" -lt 70 ]; then echo "$1: $ticks ticks after a minute" >&2; exit 1; fi
  if grep -q BAD "$1/serial"; then echo "$1: BAD" >&2; exit 1; fi
  echo "$1: from $(grep -o '^TICK .* OK' "$1/serial" | head -n 1) to $(grep -o '^TICK .* OK' "$1/serial" | tail -n 1): its memory is right"
}
