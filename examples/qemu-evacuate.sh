#!/usr/bin/env bash
# A Debian guest that works and checks its own memory, under stock QEMU, leaves its QEMU for a receiver while it runs, and that one for
# another: all on this machine, over the loopback interface. About a minute; nothing is left behind. docs/evacuation.md explains it.
#
#   cargo build --release && examples/guests/make-ticker.sh && examples/qemu-evacuate.sh
#
# Post-copy needs the right to use userfaultfd: root, or sysctl vm.unprivileged_userfaultfd=1.
. "$(dirname "${BASH_SOURCE[0]}")/qemu-common.sh"

move() { # MONITOR HOST MODE
  plan "$2.json" '{ "name": "worker", "image": "qmp:'"$1"'", "memory_mib": 192, "to": { "hosts": ["'"$2"'"] } }'
  "$scatter" send --group "$2.json" --keys keys/src --interface lo --mode "$3" >"$2.sent" 2>&1 || { cat "$2.sent" >&2; exit 1; }
  grep '^worker' "$2.sent"
}

echo "--- the guest boots, and fills and checks 32 MiB of its memory"
boot
echo "--- keys, and two receivers that may start this machine; from a receiver it leaves by a second monitor"
receivers -qmp 'unix:{dir}/leave.sock,server=on,wait=off' -pidfile '{dir}/pid'
# A VM that has moved does not end with its receiver.
trap 'cat c?/worker/pid 2>/dev/null | xargs -r kill 2>/dev/null; cleanup' EXIT
echo "--- it moves to h1: most of its memory while it runs here, the rest when it runs there"
move source/qmp.sock h1 hybrid
check c1/worker
echo "--- it moves on to h2: it runs there at once, and its memory follows"
move c1/worker/leave.sock h2 postcopy
check c2/worker
for place in source c1/worker; do echo "$place: ended with $(grep -o '^TICK .* OK' "$place/serial" | tail -n 1)"; done
