#!/usr/bin/env bash
# A render farm on one machine: makes a small scene, leaves it at the gateway, renders it, and receives the frames.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: examples/render_farm.sh [--no-broker | --amqp-url URL] [--worker rust|python] [--out DIR]

  --no-broker           the user manager fetches its messages over HTTP (default)
  --amqp-url URL        use the broker at URL, such as amqp://guest:guest@localhost:5672
  --worker rust|python  which worker renders (default: rust)
  --out DIR             keep the received frames in DIR (default: a temporary directory, removed at the end)
USAGE
}

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

amqp_url='' worker=rust out=''
while (($#)); do
    case $1 in
        --no-broker) amqp_url='' && shift ;;
        --amqp-url) amqp_url=${2:?--amqp-url needs a URL} && shift 2 ;;
        --worker) worker=${2:?--worker needs rust or python} && shift 2 ;;
        --out) out=${2:?--out needs a folder} && shift 2 ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
[[ $worker == rust || $worker == python ]] || { usage >&2 && exit 2; }

command -v blender >/dev/null || fail 'no blender in PATH; install it (on Debian: apt-get install blender)'
command -v python3 >/dev/null || fail 'no python3 in PATH; install it (on Debian: apt-get install python3)'
if [[ $worker == python ]]; then
    python3 -c 'import httpx' 2>/dev/null ||
        fail 'no Python package httpx; install it (on Debian: apt-get install python3-httpx)'
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/render-farm-XXXXXX")
if [[ -n $out ]]; then
    mkdir -p "$out" && out=$(cd "$out" && pwd)
else
    out=$work/received
fi
server_pid='' manager_pid='' passed=''

finish() {
    local pid
    for pid in $manager_pid $server_pid; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [[ -z $passed && -s $work/server.log ]]; then
        echo '--- the end of the gateway log' >&2
        tail -n 30 "$work/server.log" >&2
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() {
    printf '\n== %s\n' "$*"
}

# until_true SECONDS PID COMMAND…: waits until the command succeeds, as long as the process lives.
until_true() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || return 1
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

is_ready() {
    python3 - "$1" "$2" <<'PYTHON' 2>/dev/null
import json, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ready = json.load(opener.open(sys.argv[1] + "/readyz", timeout=2))
sys.exit(not (ready["ready"] and ready["broker"] == sys.argv[2]))
PYTHON
}

step 'building the server and its clients'
cd "$root"
cargo build --release --bins --examples
bin=${CARGO_TARGET_DIR:-$root/target}/release

step 'making a scene of two frames'
blend=$work/blends/scene.blend
mkdir -p "$work/blends"
cat >"$work/scene.py" <<'PYTHON'
import bpy
import math
import sys

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.cycles.device = "CPU"
scene.cycles.samples = 4
scene.cycles.use_denoising = False
scene.render.resolution_x = 160
scene.render.resolution_y = 120
scene.render.resolution_percentage = 100
scene.frame_start, scene.frame_end = 1, 2
cube = bpy.data.objects["Cube"]
for frame, degrees in ((1, 0), (2, 45)):
    cube.rotation_euler.z = math.radians(degrees)
    cube.keyframe_insert("rotation_euler", frame=frame)
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[-1])
PYTHON
blender --background --factory-startup --python-exit-code 1 --python "$work/scene.py" -- "$blend" \
    >"$work/scene.log" 2>&1 ||
    { cat "$work/scene.log" >&2 && fail 'Blender could not make the scene'; }
echo "scene.blend, $(wc -c <"$blend") bytes"

step 'making tokens'
# One for the worker, bound to its user ID, and one for the farm's services.
for who in worker api; do
    "$bin/user-http-server" token >"$work/$who.token" 2>"$work/token.log" || fail "no token: $(cat "$work/token.log")"
done
echo "$(cat "$work/worker.token") render-farm" >"$work/worker-tokens"

step 'starting the server'
# A process substitution would not wait until Python has ended and released the ports.
ports=$(python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
read -r http_port api_port <<<"$ports"
http=http://127.0.0.1:$http_port api=http://127.0.0.1:$api_port
broker=none with_broker=()
if [[ -n $amqp_url ]]; then
    broker=connected with_broker=(--amqp-url "$amqp_url")
fi
"$bin/user-http-server" --http-bind "127.0.0.1:$http_port" --api-bind "127.0.0.1:$api_port" \
    --worker-token-file "$work/worker-tokens" --api-token-file "$work/api.token" \
    --data-dir "$work/data" --blend-root "$work/blends" ${with_broker[@]+"${with_broker[@]}"} >"$work/server.log" 2>&1 &
server_pid=$!
until_true 30 "$server_pid" is_ready "$api" "$broker" || fail "the server did not become ready (broker: $broker)"
echo "workers: $http   API: $api   broker: $broker"

# Over AMQP its queue must exist before the first frame, or the frame waits in the gateway until it is published again.
step 'starting the user manager'
where=(--api "$api" --token-file "$work/api.token")
if [[ -n $amqp_url ]]; then
    where=("${with_broker[@]}")
fi
job=$(python3 -c 'import uuid; print(uuid.uuid4())')
"$bin/examples/user_manager" "${where[@]}" --out "$out" --until-completed --job "$job" --timeout 300 \
    >"$work/manager.out" 2>"$work/manager.log" &
manager_pid=$!
if [[ -n $amqp_url ]]; then
    until_true 30 "$manager_pid" grep -q listening "$work/manager.log" ||
        fail "the user manager has no queue: $(cat "$work/manager.log")"
fi

step 'the communication interface leaves the job'
uuid=$("$bin/examples/communication_interface" "${where[@]}" --uuid "$job" --blend "$blend" --frames 1-2)
echo "UUID $uuid"

step "the worker ($worker) fetches it, renders it, and posts the frames"
# Over AMQP a message may be published but not yet stored.
stored() {
    python3 - "$http" "$uuid" "$work/worker.token" <<'PYTHON' 2>/dev/null
import pathlib, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
token = pathlib.Path(sys.argv[3]).read_text().strip()
request = urllib.request.Request(f"{sys.argv[1]}/?bufferUUID={sys.argv[2]}", method="HEAD",
                                 headers={"Authorization": f"Bearer {token}"})
opener.open(request, timeout=2)
PYTHON
}
until_true 30 "$server_pid" stored || fail 'the server did not take the message'
as_worker=(--server "$http" --token-file "$work/worker.token" --user-id render-farm
    --cache-dir "$work/cache")
case $worker in
    rust) "$bin/examples/worker" "${as_worker[@]}" "$uuid" ;;
    python) PYTHONPATH=$root/clients/python/src python3 -m user_http_client worker "${as_worker[@]}" "$uuid" ;;
esac || fail 'the worker failed'

step 'the user manager has received the frames'
if ! wait "$manager_pid"; then
    manager_pid=''
    fail "the user manager failed: $(cat "$work/manager.out" "$work/manager.log")"
fi
manager_pid=''
cat "$work/manager.out"

step 'checking the frames'
python3 - "$out/$uuid" <<'PYTHON' || fail 'the frames are not as expected'
import pathlib, struct, sys

images = sorted(pathlib.Path(sys.argv[1]).glob("*"))
if [image.name for image in images] != ["frame_0001.png", "frame_0002.png"]:
    sys.exit(f"expected two frames, found {[image.name for image in images]}")
for image in images:
    header = image.read_bytes()[:24]
    size = struct.unpack(">II", header[16:24])
    if header[:8] != b"\x89PNG\r\n\x1a\n" or size != (160, 120):
        sys.exit(f"{image} is not a PNG of 160x120")
    print(f"{image.name}: {size[0]}x{size[1]}, {image.stat().st_size} bytes")


# Blender writes the date into a PNG, so compare only the picture.
def picture(image):
    data, at, parts = image.read_bytes(), 8, []
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IDAT":
            parts.append(data[at + 8:at + 8 + length])
        at += length + 12
    return b"".join(parts)


if picture(images[0]) == picture(images[1]):
    sys.exit("both frames show the same picture")
PYTHON

passed=yes
printf '\nPASS\n'
