#!/usr/bin/env bash
# The systemd units have no mistake that systemd knows of, and leave the service little that it could do.
# Argument: the program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/usr/lib/systemd/system
mkdir -p "$units" "$root/usr/bin" "$root/bin"
cp "$1" "$root/usr/bin/user-http-server"
cp /bin/kill "$root/bin/"
cp deploy/user-http-server*.{service,socket} "$units/"
for folder in /usr/lib/systemd/system /lib/systemd/system; do
    cp "$folder"/*.target "$units/" 2>/dev/null || true
done

for unit in deploy/user-http-server*.{service,socket}; do
    complaints=$(systemd-analyze verify --man=no --root="$root" "$(basename "$unit")" 2>&1) || {
        echo "systemd-analyze verify $unit failed: $complaints" >&2
        exit 1
    }
    # it only warns of keys and values that it does not understand
    [[ -z $complaints ]] || { echo "systemd-analyze verify $unit: $complaints" >&2; exit 1; }
done

# the threshold is in tenths
systemd-analyze security --no-pager --offline=true --threshold=20 deploy/user-http-server.service | tail -n 1
