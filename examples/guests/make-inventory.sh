#!/usr/bin/env bash
# Writes an inventory for `scatter plan` of the guests that make-guests.sh has made.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guests=${CARGO_TARGET_DIR:-$here/../../target}/guests/small
hosts=() host_count=3 copies=1 memory='' rate_mbps=10000 pool=239.77.0.0/16 form=raw out=-

usage() {
  cat <<TEXT
usage: make-inventory.sh [--guests DIR] [--host NAME=IP:PORT]... [--hosts N] [--clones N] [--memory MiB]
                         [--rate MBPS] [--pool RANGE] [--form raw|any] [--out FILE]

  --guests DIR         where make-guests.sh left guests.json (default: target/guests/small)
  --host NAME=IP:PORT  a target host; given once or more
  --hosts N            without --host: N hosts, h1 at 10.77.0.2:47077, h2 at 10.77.0.3:47077, … (default: 3),
                       which are the addresses of the lab's namespaces
  --clones N           copies of each guest, each on a host of its own (default: 1)
  --memory MiB         memory of each host (default: as much as all guests need together)
  --rate MBPS          rate of each link (default: 10000)
  --pool RANGE         multicast addresses (default: 239.77.0.0/16)
  --form raw|any       any: the guests that also have another form of image (mapped-ram) are taken from that
  --out FILE           default: standard output
TEXT
}

die() {
  echo "make-inventory: $*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --guests | --host | --hosts | --clones | --memory | --rate | --pool | --form | --out)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --guests) guests=$2 ;;
        --host) hosts+=("$2") ;;
        --hosts) host_count=$2 ;;
        --clones) copies=$2 ;;
        --memory) memory=$2 ;;
        --rate) rate_mbps=$2 ;;
        --pool) pool=$2 ;;
        --form) form=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    *) usage >&2 && die "unknown option $1" ;;
  esac
done
[ -e "$guests/guests.json" ] || die "no guests.json in $guests; run make-guests.sh first"
guests=$(cd "$guests" && pwd)
case $form in raw | any) ;; *) die "--form is raw or any" ;; esac
for number in "$host_count" "$copies" "$rate_mbps" "${memory:-1}"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || die "$number is no number from 1"
done
if [ ${#hosts[@]} = 0 ]; then
  [ "$host_count" -le 240 ] || die "--hosts is at most 240"
  for ((i = 1; i <= host_count; i++)); do hosts+=("h$i=10.77.0.$((1 + i)):47077"); done
fi

# guests.json is ours: a line for each guest, its fields in this order.
field='"\([^"]*\)"'
mapfile -t lines < <(sed -n "s/^ *{\"name\": $field, .*\"path\": $field, \"format\": $field, \"bytes\": \([0-9]*\), \"also\": \[\(.*\)\]}.*/\1|\2|\3|\4|\5/p" \
  "$guests/guests.json")
[ ${#lines[@]} -gt 0 ] || die "$guests/guests.json has no guests"

# Unless told otherwise, any host can take every copy that may be put there.
memory_mib=0 vms=''
for line in "${lines[@]}"; do
  IFS='|' read -r name path format bytes also <<<"$line"
  if [ $form = any ] && [[ $also =~ \"path\":\ \"([^\"]*)\",\ \"format\":\ \"(qemu-mapped-ram)\" ]]; then
    path=${BASH_REMATCH[1]} format=${BASH_REMATCH[2]}
  fi
  mib=$(((bytes + 1048575) / 1048576))
  memory_mib=$((memory_mib + mib))
  vms+=$(printf '    {"name": "%s", "image": "%s/%s", "format": "%s", "memory_mib": %d, "to": {"clones": %d}},' \
    "$name" "$guests" "$path" "$format" "$mib" "$copies")$'\n'
done
: "${memory:=$memory_mib}"
host_lines=''
for host in "${hosts[@]}"; do
  [[ $host == ?*=?* ]] || die "--host is NAME=IP:PORT, not $host"
  host_lines+=$(printf '    {"name": "%s", "address": "%s", "memory_mib": %d, "vcpus": %d, "rate_mbps": %d},' \
    "${host%%=*}" "${host#*=}" "$memory" ${#lines[@]} "$rate_mbps")$'\n'
done

inventory=$(
  cat <<JSON
{
  "version": 1,
  "name": "guests of $(basename "$guests")",
  "source": {"name": "sender", "rate_mbps": $rate_mbps},
  "hosts": [
${host_lines%,$'\n'}
  ],
  "vms": [
${vms%,$'\n'}
  ],
  "multicast": {"pool": "$pool"}
}
JSON
)
if [ "$out" = - ]; then echo "$inventory"; else echo "$inventory" >"$out"; fi
