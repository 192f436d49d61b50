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

# Changes for a data directory elsewhere, and for a password 100%, as docs/deployment.md shows them.
mkdir "$units/user-http-server.service.d"
cat >"$units/user-http-server.service.d/override.conf" <<'END'
[Service]
ReadWritePaths=/srv/gateway
Environment=USER_HTTP_SERVER_AMQP_URL=amqp://gateway:100%%25@rabbitmq.example/
END

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

# The configuration file decides where the messages are, and an older one without data-dir means the same folder as the
# shipped one.
unit=deploy/user-http-server.service
mkdir -p "$root/state/user-http-server" "$root/credentials"
expanded() { sed -n "s#%d#$root/credentials#g; s#%S#$root/state#g; s/^$1=//p" "$unit"; }
readarray -t environment < <(expanded Environment)
folder=$(expanded WorkingDirectory)
data_dir() { # the content of the configuration file
    echo "$1" >"$root/credentials/config.toml"
    (cd "$folder" && env -i "${environment[@]}" "$root/usr/bin/user-http-server" check) |
        sed -n 's/^data-dir *= "\([^"]*\)".*/\1/p'
}
found=$(data_dir "data-dir = \"$root/elsewhere\"")
[[ $found == "$root/elsewhere" ]] || { echo "data-dir of the file is $root/elsewhere, but used is $found" >&2; exit 1; }
found=$(cd "$folder" && realpath --canonicalize-missing "$(data_dir '')")
shipped=$(sed -n 's/^data-dir = "\/var\/lib\(.*\)"$/\1/p' deploy/config.toml)
[[ $found == "$root/state$shipped" ]] || { echo "without data-dir in the file, $found is used" >&2; exit 1; }
