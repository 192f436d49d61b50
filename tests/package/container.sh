#!/usr/bin/env bash
# The container image: buildah builds it from deploy/Containerfile, and the program runs in it as the image's user, with
# a read-only root. Argument: the program, which stands in for what the build stage compiles. TEST_RABBITMQ4_ROOT is the
# folder of a Debian system, which stays as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "tests/package/container.sh: $*" >&2
    exit 1
}

work=$(mktemp -d)
cleanup() {
    [[ -z ${server-} ]] || { kill -KILL "$server" && wait "$server"; } 2>/dev/null || true
    umount "$work/root/var/lib/user-http-server" "$work/root" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
if [[ ${IN_NAMESPACE-} != yes ]]; then
    trap - EXIT
    rmdir "$work"
    IN_NAMESPACE=yes exec unshare --mount --net "${BASH_SOURCE[0]}" "$1"
fi
ip link set lo up

build() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

# Images from no registry: what the program needs of a Debian system, and for the build stage a shell and a `cargo`.
system=$TEST_RABBITMQ4_ROOT
copy() {
    local file target
    for file; do
        target=$work/$image$file
        mkdir -p "$(dirname "$target")"
        cp --dereference "$system$file" "$target"
    done
}
libraries() { chroot "$system" ldd "$1" | grep --only-matching '/[^ ]*'; }
cp "$1" "$work/program"
readarray -t needed < <(ldd "$1" | grep --only-matching '/[^ ]*')
for image in base builder; do
    for file in "${needed[@]}"; do
        [[ -e $system$file ]] && copy "$file"
    done
done
image=builder
for tool in /bin/sh /bin/mkdir /bin/cp; do
    copy "$tool"
    readarray -t needed < <(libraries "$tool")
    copy "${needed[@]}"
done
cp "$work/program" "$work/builder/program"
printf '#!/bin/sh\nmkdir -p target/release && cp /program target/release/user-http-server\n' >"$work/builder/bin/cargo"
chmod 755 "$work/builder/bin/cargo"
for image in base builder; do
    container=$(build from scratch)
    build add --quiet "$container" "$work/$image" / >/dev/null
    build commit --quiet "$container" "localhost/$image" >/dev/null
    build rm "$container" >/dev/null
done

mkdir "$work/context"
cp Cargo.toml .dockerignore "$work/context/"
build build --quiet --isolation chroot --format docker --file deploy/Containerfile --tag localhost/gateway \
    --build-arg BUILDER=localhost/builder --build-arg BASE=localhost/base --build-arg REVISION=abc "$work/context" \
    >/dev/null

inspect() { build inspect --type image --format "$1" localhost/gateway; }
[[ $(inspect '{{.Docker.Config.User}}') == 10000:10000 ]] || fail "the user is $(inspect '{{.Docker.Config.User}}')"
inspect '{{.Docker.Config.Healthcheck.Test}}' | grep --quiet 'CMD /usr/bin/user-http-server healthcheck' ||
    fail "the health check is $(inspect '{{.Docker.Config.Healthcheck.Test}}')"
inspect '{{.Docker.Config.Labels}}' | grep --quiet 'org.opencontainers.image.revision:abc' ||
    fail "the labels are $(inspect '{{.Docker.Config.Labels}}')"
readarray -t variables < <(inspect '{{range .Docker.Config.Env}}{{println .}}{{end}}' | grep '^USER_HTTP_SERVER_')
((${#variables[@]} == 3)) || fail "the variables are ${variables[*]}"

# As a container runtime would: the root is read-only, the volume has the owner of its folder.
container=$(build from localhost/gateway)
mounted=$(build mount "$container")
owner=$(stat -c %u:%g "$mounted/var/lib/user-http-server")
[[ $owner == 10000:10000 ]] || fail "the volume belongs to $owner"
mkdir "$work/root"
mount --bind "$mounted" "$work/root"
mount -o remount,bind,ro "$work/root"
mount -t tmpfs -o "mode=700,uid=10000,gid=10000" none "$work/root/var/lib/user-http-server"
program=(env -i "${variables[@]}" "$(command -v chroot)" --userspec=10000:10000 --groups= "$work/root"
    /usr/bin/user-http-server)
in_container() { "${program[@]}" "$@" >/dev/null; }
"${program[@]}" serve >/dev/null 2>"$work/log" </dev/null &
server=$!
for _ in {1..300}; do
    ! in_container healthcheck 2>/dev/null || break
    kill -0 "$server" 2>/dev/null || fail "the server has ended: $(cat "$work/log")"
    sleep 0.1
done
in_container healthcheck || fail "the health check fails: $(cat "$work/log")"
[[ $(stat -c %u "/proc/$server") == 10000 ]] || fail "the server runs as user $(stat -c %u "/proc/$server")"
[[ -e $work/root/var/lib/user-http-server/data/buffer ]] || fail "no data directory in the volume"
kill -TERM "$server"
wait "$server" || fail "the server ended with $?: $(cat "$work/log")"
server=
! in_container healthcheck 2>/dev/null || fail "a stopped server passes the health check"
echo "built with buildah, and run with a read-only root as user 10000"
