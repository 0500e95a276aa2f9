#!/bin/sh
# Unpacks the programs that benches compare VMScatter with, UFTP and udpcast, from the distribution's packages into
# target/peers (or $SCATTER_PEERS). Nothing is installed: UFTP's package would start a daemon. Needs no root.
set -eu

cd "$(dirname "$0")/.."
target=${SCATTER_PEERS:-target/peers}
packages="uftp udpcast"

if [ -x "$target/usr/bin/uftp" ] && ls "$target"/usr/*bin/udp-sender >/dev/null 2>&1; then
    exit 0
fi
for program in apt-get dpkg; do
    command -v $program >/dev/null || { echo "peers.sh: $program is missing; this needs Debian or Ubuntu" >&2; exit 1; }
done

mkdir -p "$target"
# _apt, the user that apt downloads as, may not reach the project's directory; the directory for it is elsewhere then.
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
chmod 755 "$download"
# shellcheck disable=SC2086 # a list
(cd "$download" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download $packages) || {
    echo "peers.sh: cannot download the packages $packages; is the package index current (apt-get update)?" >&2
    exit 1
}
for package in "$download"/*.deb; do
    dpkg -x "$package" "$target"
done
echo "peers.sh: unpacked $packages into $target"
