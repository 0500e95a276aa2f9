#!/usr/bin/env bash
# A Debian guest that works and checks its own memory, under stock QEMU, becomes four running clones on two receivers, all on this
# machine, over the loopback interface. It goes on itself. About half a minute; nothing is left behind. docs/qemu.md explains it.
#
#   cargo build --release && examples/guests/make-ticker.sh && examples/qemu-clone.sh
#
# Post-copy needs the right to use userfaultfd: root, or sysctl vm.unprivileged_userfaultfd=1.
. "$(dirname "${BASH_SOURCE[0]}")/qemu-common.sh"

echo "--- the source boots, and fills and checks 32 MiB of its memory"
boot
echo "--- keys, and two receivers that may start this machine"
receivers
echo "--- the running guest is captured and cloned"
plan plan.json '{ "name": "worker", "image": "qmp:source/qmp.sock", "memory_mib": 192, "to": { "clones": 4 }, "clones_per_host": 2,
  "launch": { "kind": "qemu" } }'
"$scatter" clone --group plan.json --keys keys/src --interface lo 2>&1
echo "--- every clone goes on from where the source was"
for clone in c1/* c2/*; do check "$clone"; done
echo "source: $(grep -o '^TICK .* OK' source/serial | tail -n 1)"
