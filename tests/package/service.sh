#!/usr/bin/env bash
# The service of the Debian package under systemd: the first steps of docs/deployment.md, and what that page says of
# folders, files, a reload and an upgrade. Arguments: the package, and another that replaces it and is replaced by it.
# systemd runs on a copy of this machine's root that nobody else sees, with processes and a network of its own.
set -euo pipefail

if [[ ${IN_NAMESPACE-} != yes ]]; then
    WORK=$(mktemp -d)
    export WORK
    trap 'rm -rf "$WORK"' EXIT
    mkdir "$WORK/tmpfs" "$WORK/shared"
    cp "$1" "$WORK/shared/package.deb"
    cp "$2" "$WORK/shared/other.deb"
    cp "$(dirname "${BASH_SOURCE[0]}")"/{first,service}-steps.sh "$WORK/shared/"
    IN_NAMESPACE=yes timeout --kill-after=5 300 unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child \
        "${BASH_SOURCE[0]}" >"$WORK/boot" 2>&1 </dev/null || true
    [[ -e $WORK/shared/passed ]] || {
        echo "tests/package/service.sh: the last command below has failed" >&2
        tail -n 5 "$WORK/boot" >&2
        tail -n 60 "$WORK/shared/log" >&2
        exit 1
    }
    echo "the first steps under systemd, a restore, another data directory, a reload and an upgrade"
    exit
fi

mount -t tmpfs none "$WORK/tmpfs"
mkdir "$WORK/tmpfs/upper" "$WORK/tmpfs/work" "$WORK/tmpfs/root"
root=$WORK/tmpfs/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/tmpfs/upper,workdir=$WORK/tmpfs/work" "$root"
mount -t proc none "$root/proc"
mount -t sysfs none "$root/sys"
mount -t tmpfs none "$root/run"
mount -t tmpfs none "$root/tmp"
mount --rbind /dev "$root/dev"
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    mount -t cgroup2 none "$root/sys/fs/cgroup"
else
    mount -t tmpfs none "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd none "$root/sys/fs/cgroup/systemd"
fi
mount --bind "$WORK/shared" "$root/mnt"
ip link set lo up
# the tests keep packages from starting their services
rm -f "$root/usr/sbin/policy-rc.d"
cat >"$root/etc/systemd/system/steps.service" <<'END'
[Unit]
DefaultDependencies=no
After=basic.target
Wants=basic.target

[Service]
Type=oneshot
Environment=HOME=/root DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/bash -c 'bash -x /mnt/service-steps.sh >/mnt/log 2>&1 </dev/null && touch /mnt/passed'
ExecStopPost=/bin/systemctl exit
END
cd "$root"
mkdir before
pivot_root . before
umount --lazy /before
# systemd gives the service its credentials through mounts that must reach the others
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=steps.service
