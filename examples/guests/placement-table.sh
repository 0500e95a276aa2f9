#!/usr/bin/env bash
# What placing by pages is worth on real guests: a dozen Debian guests (two kernels, four workloads) onto 4 hosts that hold
# three each, placed by us, by VMScatter's greedy, by load balancing and at random, beside the lower bound. Makes the
# guests if they are not there yet (some minutes), measures them, and prints the table; docs/planner.md has it.
set -euo pipefail

usage() {
  cat <<TEXT
usage: placement-table.sh [--hosts N] [--memory MiB] [--out FILE.csv]

  --hosts N       target hosts (default: 4)
  --memory MiB    memory of each host: at least what its part of the guests needs (default: three guests of 256 MiB)
  --out FILE.csv  the table as a file, too
TEXT
}

hosts=4 memory=768 out=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --hosts | --memory | --out)
      [ $# -ge 2 ] || { echo "placement-table: $1 needs a value" >&2 && exit 1; }
      case $1 in
        --hosts) hosts=$2 ;;
        --memory) memory=$2 ;;
        --out) out=("$(realpath -m "$2")") ;;
      esac
      shift 2
      ;;
    *) usage >&2 && exit 1 ;;
  esac
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

"$here/make-guests.sh" --set full
"$here/make-inventory.sh" --guests "$target/guests/full" --hosts "$hosts" --memory "$memory" --out "$dir/inventory.json"
cargo build --quiet --release --bin scatter
cargo build --quiet --release -p planner --example placements
"$target/release/scatter" measure "$dir/inventory.json" -o "$dir/signatures.json"
"$target/release/examples/placements" "$dir/inventory.json" "$dir/signatures.json" "${out[@]}"
