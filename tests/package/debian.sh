#!/usr/bin/env bash
# The Debian package: lintian finds no error, two builds give the same bytes, and a Debian system survives installing,
# upgrading, removing and purging it. The installed program has a first frame on its status page within a minute. Its
# service works under systemd (service.sh).
# Argument: the program. TEST_RABBITMQ4_ROOT is the folder of a Debian system, which stays as it is. TEST_OTHER_PROGRAM
# is another build, which replaces the service and is replaced by it; without it, that is the same program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "tests/package/debian.sh: $*" >&2
    exit 1
}

# Runs this script again where mounts are its own.
if [[ ${IN_NAMESPACE-} != yes ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for build in first second; do
        deploy/package --program "$1"
        mkdir "$work/$build"
        mv target/package/*.deb "$work/$build/"
    done
    cmp "$work"/first/*.deb "$work"/second/*.deb || fail "two builds differ"
    # in the tests the program may have debug assertions, but the package is the same
    lintian --fail-on error --allow-root "$work"/first/*.deb
    mkdir "$work/other"
    deploy/package --program "${TEST_OTHER_PROGRAM:-$1}"
    mv target/package/*.deb "$work/other/"
    tests/package/service.sh "$work"/{first,other}/*.deb
    IN_NAMESPACE=yes WORK=$work unshare --mount "${BASH_SOURCE[0]}"
    exit
fi

# A later version with another configuration file.
cp "$WORK"/first/*.deb "$WORK/1.deb"
dpkg-deb --raw-extract "$WORK/1.deb" "$WORK/later"
sed -i 's/^Version: .*/Version: 99.0-1/' "$WORK/later/DEBIAN/control"
echo '# a new setting' >>"$WORK/later/etc/user-http-server/config.toml"
dpkg-deb --root-owner-group -Zgzip -z1 --build "$WORK/later" "$WORK/2.deb" >/dev/null

root=$WORK/root
mkdir "$root" "$WORK/tmpfs"
mount -t tmpfs none "$WORK/tmpfs"
mkdir "$WORK/tmpfs/upper" "$WORK/tmpfs/work"
mount -t overlay overlay -o "lowerdir=$TEST_RABBITMQ4_ROOT,upperdir=$WORK/tmpfs/upper,workdir=$WORK/tmpfs/work" "$root"
cp "$WORK"/[12].deb "$root/tmp/"
trap 'umount "$root" "$WORK/tmpfs"' EXIT

in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null; }
there() { for path; do [[ -e $root$path || -L $root$path ]] || fail "$step: no $path"; done; }
gone() { for path; do [[ ! -e $root$path && ! -L $root$path ]] || fail "$step: $path is still there"; done; }
config=/etc/user-http-server/config.toml data=/var/lib/user-http-server/data
wants=/etc/systemd/system/multi-user.target.wants/user-http-server.service
sockets=/etc/systemd/system/sockets.target.wants

step=install
in_root dpkg --install /tmp/1.deb >/dev/null
there /usr/bin/user-http-server "$config" /usr/share/man/man1/user-http-server.1.gz \
    /usr/share/bash-completion/completions/user-http-server /usr/share/doc/user-http-server/copyright "$wants" \
    "$sockets/user-http-server.socket" "$sockets/user-http-server-api.socket"
in_root getent passwd user-http-server >/dev/null || fail "$step: no user"
[[ $(stat -c %a "$root$config") == 640 ]] || fail "$step: others can read $config"
step='first frame'
SECONDS=0
(exec chroot "$root" timeout 60 /usr/bin/user-http-server demo --no-blender --keep </dev/null >"$WORK/demo") &
demo=$!
until grep -q 'The frame is in' "$WORK/demo"; do
    kill -0 "$demo" 2>/dev/null || fail "$step: not within a minute: $(cat "$WORK/demo")"
    sleep 0.05
done
page=$(sed -n 's/.*status page  \([^ ]*\).*/\1/p' "$WORK/demo")
curl --silent --show-error --fail "${page}status" | grep --quiet '"forwarded":2' ||
    fail "$step: the page does not show it"
echo "$SECONDS s from the installed program to a first frame on its status page"
kill "$demo"
wait "$demo" || true
step=install
# the configuration as it is shipped, in the folder that the unit creates
mkdir -p "$root$data"
in_root sh -c "cd /var/lib/user-http-server && user-http-server check --config $config" >/dev/null ||
    fail "$step: the shipped configuration is not valid"

step='upgrade'
echo 'max-body = "1MiB"' >>"$root$config"
chmod 600 "$root$config"
echo message >"$root$data/message"
rm "$root$wants"
in_root dpkg --force-confdef --force-confold --install /tmp/2.deb >/dev/null
grep --quiet '^max-body = "1MiB"$' "$root$config" || fail "$step: the configuration was overwritten"
[[ $(stat -c %a "$root$config") == 600 ]] || fail "$step: the mode of $config has changed"
there "$config.dpkg-dist" "$data/message"
gone "$wants" # the administrator has disabled the service
grep --quiet '^# a new setting$' "$root$config.dpkg-dist" || fail "$step: the new configuration is not beside it"

step='way back'
in_root dpkg --force-downgrade --force-confdef --force-confold --install /tmp/1.deb >/dev/null 2>&1
grep --quiet '^max-body = "1MiB"$' "$root$config" || fail "$step: the configuration was overwritten"
there "$data/message"

step=remove
in_root dpkg --remove user-http-server >/dev/null
gone /usr/bin/user-http-server /usr/lib/systemd/system/user-http-server.service
there "$config" "$data/message"

step=purge
in_root dpkg --purge user-http-server >/dev/null
gone "$config" /etc/user-http-server /var/lib/user-http-server "$wants" "$sockets/user-http-server.socket"
echo "installed, upgraded, downgraded, removed and purged"
