#!/usr/bin/env bash
# deploy/config.toml has each setting once, in the order of the program, with its default. Argument: the program.
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "tests/package/settings.sh: $*" >&2
    exit 1
}

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
# a line for each setting: its key, and its value or (not set)
defaults=$(cd "$home" && env -i "$program" check 2>/dev/null |
    sed -n '/^config /d; s/^\([a-z-]*\) *= \(.*[^ ]\) *# default$/\1 \2/p')
[[ -n $defaults ]] || fail "the program prints no defaults"
shown=$(sed -n 's/^#\?\([a-z][a-z-]*\) = \(.*\)$/\1 \2/p' deploy/config.toml)

# not every key has a value that it could be compared by
diff <(cut -d ' ' -f 1 <<<"$defaults") <(cut -d ' ' -f 1 <<<"$shown") >&2 || fail "deploy/config.toml has other keys"
while read -r key value; do
    [[ $value != '(not set)' && $key != data-dir ]] || continue
    found=$(sed -n "s/^$key \[\{0,1\}\([^]]*\)\]\{0,1\}$/\1/p" <<<"$shown")
    [[ $found == "$value" ]] || fail "the default of $key is $value, but deploy/config.toml has $found"
done <<<"$defaults"

# What it sets is for the service; all else is a comment.
active=$(grep --invert-match --extended-regexp '^(#|$)' deploy/config.toml)
[[ $active == 'data-dir = "/var/lib/user-http-server/data"' ]] || fail "deploy/config.toml sets $active"
echo "$(wc -l <<<"$shown") settings"
