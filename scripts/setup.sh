#!/bin/sh
# Installs what VMScatter's build, tests, demo and benches need on Debian or Ubuntu. Quiet, and does nothing where all
# is there. Without root it installs nothing, prints what is missing and fails. Rust is not installed here.
set -eu

# A program or file that must be there, and the package that has it.
needs() {
    cat <<'LIST'
nft nftables
ip iproute2
tc iproute2
ethtool ethtool
busybox busybox-static
cpio cpio
xz xz-utils
cc gcc
unshare util-linux
qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils
libvirtd libvirt-daemon
virsh libvirt-clients
LIST
}

PATH=$PATH:/usr/sbin:/sbin

missing_packages() {
    needs | while read -r program package; do
        command -v "$program" >/dev/null 2>&1 || echo "$package"
    done | sort -u
    # libvirt's driver for QEMU is a package of its own.
    for driver in /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so; do
        [ -e "$driver" ] || echo libvirt-daemon-driver-qemu
    done
    # A busybox with shared libraries is of no use in an initramfs.
    if command -v busybox >/dev/null 2>&1 && ! is_static "$(command -v busybox)"; then
        echo busybox-static
    fi
    # The C library's headers are a package of their own.
    if command -v cc >/dev/null 2>&1 && ! echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1; then
        echo libc6-dev
    fi
}

# The dynamic loader refuses what is not dynamically linked.
is_static() {
    ! ldd "$1" >/dev/null 2>&1
}

# On a machine with QEMU's tools from backports, the release's own QEMU is too old to stand beside them.
backports_suite() {
    installed=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) || return 0
    case $installed in
        *~bpo*) . /etc/os-release && echo "${VERSION_CODENAME:-}-backports" ;;
    esac
}

# Writes a source for backports, made from the one that is configured for the release's updates. No mirror is named here.
add_backports() {
    suite=$1
    updates=${suite%-backports}-updates
    if grep -rqsw -- "$suite" /etc/apt/sources.list /etc/apt/sources.list.d; then
        return 0
    fi
    found=$(mktemp)
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        # Paragraph mode: one stanza at a time, comments taken off.
        awk -v updates="$updates" -v suite="$suite" '
            BEGIN { RS = ""; ORS = "\n\n" }
            {
                count = split($0, lines, "\n"); stanza = ""; wanted = 0
                for (i = 1; i <= count; i++) {
                    if (lines[i] ~ /^#/) continue
                    if (lines[i] ~ /^Suites:/ && (lines[i] " ") ~ ("[ \t]" updates "[ \t]")) {
                        wanted = 1; lines[i] = "Suites: " suite
                    }
                    stanza = stanza (stanza == "" ? "" : "\n") lines[i]
                }
                if (wanted) { print stanza; exit }
            }' "$file" >"$found"
        [ ! -s "$found" ] || break
    done
    target=/etc/apt/sources.list.d/backports.sources
    if [ ! -s "$found" ] && [ -r /etc/apt/sources.list ]; then
        awk -v updates="$updates" -v suite="$suite" '$1 == "deb" {
            for (i = 2; i < NF; i++) if ($i == updates) { $i = suite; print; exit }
        }' /etc/apt/sources.list >"$found"
        target=/etc/apt/sources.list.d/backports.list
    fi
    if [ ! -s "$found" ]; then
        rm -f "$found"
        echo "setup.sh: QEMU's tools are from $suite, but no apt source for $updates is configured to take it from" >&2
        return 1
    fi
    install -m 644 "$found" "$target"
    rm -f "$found"
    echo "setup.sh: added $target for $suite"
}

packages=$(missing_packages | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup.sh: missing packages: $packages" >&2
    echo "setup.sh: run as root: scripts/setup.sh" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "setup.sh: this is neither Debian nor Ubuntu; install what these packages have: $packages" >&2
    exit 1
fi

log=$(mktemp)
quietly() {
    DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 && return 0
    echo "setup.sh: failed: $*" >&2
    cat "$log" >&2
    rm -f "$log"
    exit 1
}

release=
case " $packages " in
    *" qemu-system-x86 "*)
        suite=$(backports_suite)
        if [ -n "$suite" ]; then
            add_backports "$suite"
            release="-t $suite"
        fi
        ;;
esac
# Only QEMU must be of the same release as its tools; whatever else came from there would bring a newer system with it.
qemu=
others=
for package in $packages; do
    case $package in
        qemu-*) qemu="$qemu $package" ;;
        *) others="$others $package" ;;
    esac
done
quietly apt-get -q update
# shellcheck disable=SC2086 # lists
[ -z "$qemu" ] || quietly apt-get -q -y --no-install-recommends $release install $qemu
# shellcheck disable=SC2086 # a list
[ -z "$others" ] || quietly apt-get -q -y --no-install-recommends install $others
rm -f "$log"

left=$(missing_packages | tr '\n' ' ')
if [ -n "$left" ]; then
    echo "setup.sh: still missing after installation: $left" >&2
    exit 1
fi
echo "setup.sh: installed $packages"
