# The parts of a cluster on one machine, for the scripts beside it (bash): how each is started, killed and asked how it
# is. The script that sources this sets FOLDER, the folder of the cluster; `$FOLDER/settings` has what `start` chose.
#
# The parts are db1 to db3, rabbit1 to rabbit3, gateway1 to gateway3, and the proxy. `$FOLDER/NAME.pid` is the process
# of a part, `$FOLDER/NAME.log` its output, `$FOLDER/NAME` its data.
export LC_ALL=C

readonly DATABASES=(db1 db2 db3) NODES=(rabbit1 rabbit2 rabbit3) GATEWAYS=(gateway1 gateway2 gateway3)
readonly PARTS=("${DATABASES[@]}" "${NODES[@]}" "${GATEWAYS[@]}")
# The superuser of the databases. They are reached over loopback alone, and ask for no password.
readonly SUPERUSER=postgres
# How long a part may take until it takes work, in seconds: machines that compile at the same time are slow.
readonly PATIENCE=180

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Repeats a command until it succeeds: wait_until WHAT COMMAND...
wait_until() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "not within $PATIENCE s: $what; $FOLDER has the logs"
        sleep 0.1
    done
}

# Starts a program in the background, as the leader of a process group of its own: launch NAME COMMAND...
launch() {
    local name=$1
    shift
    setsid "$@" </dev/null >>"$FOLDER/$name.log" 2>&1 &
    echo $! >"$FOLDER/$name.pid"
    disown
}

# Whether something accepts connections at port $1.
accepts() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The number of a part: 2 for gateway2.
number_of() { echo "${1: -1}"; }

# --- PostgreSQL

# PostgreSQL refuses to run as root.
AS_DATABASE=()
[[ $(id -u) != 0 ]] || AS_DATABASE=(setpriv --reuid=nobody --regid=nogroup --clear-groups --)

# Every database may become the primary. Which of them starts as a standby is the file standby.signal, nothing else. A
# standby finds the primary by itself, as the gateways do: the one that accepts writes.
#
# ANY 1: a commit is acknowledged when it is on the disks of the primary and of one standby, whichever is first. So any
# of the three may die: what was acknowledged is still there, and while two run, commits are still on both.
start_database() {
    local name=$1
    "${AS_DATABASE[@]}" rm -f "$FOLDER/$name/data/postmaster.pid"
    launch "$name" "${AS_DATABASE[@]}" "$POSTGRES/postgres" -D "$FOLDER/$name/data" -p "${PORT[$name]}" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c cluster_name="$name" \
        -c synchronous_standby_names='ANY 1 (db1, db2, db3)' \
        -c primary_conninfo="host=127.0.0.1,127.0.0.1,127.0.0.1 port=${PORT[db1]},${PORT[db2]},${PORT[db3]} \
user=$SUPERUSER application_name=$name connect_timeout=2 target_session_attrs=read-write" \
        -c wal_keep_size=1GB -c wal_retrieve_retry_interval=200ms
}

database_answers() { [[ $(ask "$1" 'SELECT 1') == 1 ]]; }

# The answer of a database to a statement; nothing if it does not answer.
ask() {
    PGCONNECT_TIMEOUT=2 "$POSTGRES/psql" --no-psqlrc --quiet --tuples-only --no-align --host=127.0.0.1 \
        --port="${PORT[$1]}" --username="$SUPERUSER" --dbname=postgres --command="$2" 2>/dev/null || true
}

# The name of the database that accepts writes.
primary() {
    local name
    for name in "${DATABASES[@]}"; do
        [[ $(ask "$name" 'SELECT pg_is_in_recovery()') != f ]] || echo "$name"
    done
}

# Whether the primary can be lost: both standbys have all that it has, or are about to.
databases_are_whole() {
    local now
    now=$(primary)
    [[ -n $now && $(ask "$now" "SELECT count(*) FROM pg_stat_replication
        WHERE state = 'streaming' AND sync_state = 'quorum'") == 2 ]]
}

# Gives a database the data of another one, as its standby: copy_database FROM TO
copy_database() {
    "${AS_DATABASE[@]}" rm -rf "$FOLDER/$2/data"
    "${AS_DATABASE[@]}" "$POSTGRES/pg_basebackup" --checkpoint=fast --pgdata="$FOLDER/$2/data" --host=127.0.0.1 \
        --port="${PORT[$1]}" --username="$SUPERUSER" >>"$FOLDER/$2.log" 2>&1 ||
        fail "$2 cannot be copied from $1; see $FOLDER/$2.log"
    "${AS_DATABASE[@]}" touch "$FOLDER/$2/data/standby.signal"
}

# Whether a standby gets nothing from a primary any more.
receives_nothing() {
    [[ $(ask "$1" "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == 0 ]]
}

# Makes a standby the primary in place of $1, which is dead, and makes $1 its standby. Both standbys must run.
fail_over() {
    local dead=$1 name best='' most=0/0 has
    # The fence: from now on the dead one can start as a standby only, whoever starts it.
    "${AS_DATABASE[@]}" touch "$FOLDER/$dead/data/standby.signal"
    # What was acknowledged is on one standby or the other, so the one that has more has all of it.
    for name in "${DATABASES[@]}"; do
        [[ $name != "$dead" ]] || continue
        wait_until "$name has lost its primary" receives_nothing "$name"
        has=$(ask "$name" 'SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())')
        [[ -n $has ]] || fail "$name does not say what it has received"
        if [[ $(ask "$name" "SELECT '$has'::pg_lsn > '$most'::pg_lsn") == t ]]; then
            best=$name most=$has
        fi
    done
    [[ $(ask "$best" "SELECT pg_promote(wait_seconds => $PATIENCE)") == t ]] || fail "$best cannot be promoted"
    say "promoted $best, which had received $most"
    copy_database "$best" "$dead"
    start_database "$dead"
}

# --- RabbitMQ

# Sets COMMAND to a program in the environment of a node: rabbit NODE PROGRAM ARGUMENTS...
rabbit() {
    local name=$1 within=()
    shift
    [[ -z $RABBITMQ_ROOT ]] || within=(chroot "$RABBITMQ_ROOT")
    COMMAND=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME="$RABBITMQ_HOME"
        ERL_EPMD_PORT="${PORT[epmd]}" ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_NODENAME="$name@localhost"
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="${PORT[$name]}"
        RABBITMQ_DIST_PORT="${PORT[$name-nodes]}" RABBITMQ_CONF_ENV_FILE="$RABBITMQ_HOME/env.conf"
        RABBITMQ_CONFIG_FILE="$RABBITMQ_HOME/rabbitmq.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$RABBITMQ_HOME/none.config"
        RABBITMQ_ENABLED_PLUGINS_FILE="$RABBITMQ_HOME/enabled_plugins" RABBITMQ_MNESIA_BASE="$RABBITMQ_HOME/$name"
        RABBITMQ_LOG_BASE="$RABBITMQ_HOME/$name/log" RABBITMQ_PID_FILE="$RABBITMQ_HOME/$name/pid" "${within[@]}" "$@")
}

# These programs run under any user; Debian's wrappers in /usr/sbin require the user rabbitmq.
readonly RABBITMQ_BIN=/usr/lib/rabbitmq/bin

start_node() {
    rabbit "$1" "$RABBITMQ_BIN/rabbitmq-server"
    launch "$1" "${COMMAND[@]}"
}

# Whether a program of RabbitMQ succeeds at a node: at_node NODE PROGRAM ARGUMENTS...
at_node() {
    rabbit "$1" "$RABBITMQ_BIN/$2" --quiet "${@:3}"
    "${COMMAND[@]}" </dev/null >>"$FOLDER/$1.log" 2>&1
}

# Whether any node can be lost: every quorum queue would keep a majority.
nodes_are_whole() {
    at_node rabbit1 rabbitmqctl await_online_nodes 3 &&
        at_node rabbit1 rabbitmq-diagnostics check_if_node_is_quorum_critical
}

# --- gateways and the proxy

start_gateway() {
    local name=$1 step node database hosts='' urls=()
    for database in "${DATABASES[@]}"; do
        hosts+=,127.0.0.1:${PORT[$database]}
    done
    # The nodes are tried in turn: each gateway begins at another one.
    for step in 0 1 2; do
        node=${NODES[($(number_of "$name") - 1 + step) % 3]}
        urls+=(--amqp-url "amqp://guest:guest@127.0.0.1:${PORT[$node]}/%2f")
    done
    launch "$name" "$USER_HTTP_SERVER" serve --data-dir "$FOLDER/$name/data" --blend-root "$FOLDER/blends" \
        --http-bind "127.0.0.1:${PORT[$name]}" --api-bind "127.0.0.1:${PORT[$name-api]}" \
        --buffer-store "postgres://gateway@${hosts#,}/gateway" --postgres-require-sync 1 \
        "${urls[@]}" --amqp-queue-type quorum --amqp-settle 0 --frame-ack broker
}

# Whether a gateway takes work of both kinds.
gateway_is_ready() {
    "$USER_HTTP_SERVER" healthcheck "http://127.0.0.1:${PORT[$1-api]}" >/dev/null 2>&1
}

start_proxy() {
    launch proxy env WORKERS="${PORT[workers]}" SERVICES="${PORT[services]}" \
        GATEWAY1="${PORT[gateway1]}" GATEWAY2="${PORT[gateway2]}" GATEWAY3="${PORT[gateway3]}" \
        GATEWAY1_API="${PORT[gateway1-api]}" GATEWAY2_API="${PORT[gateway2-api]}" \
        GATEWAY3_API="${PORT[gateway3-api]}" haproxy -db -f "$HERE/haproxy.cfg"
}

# --- any part

start_part() {
    case $1 in
        db*) start_database "$1" ;;
        rabbit*) start_node "$1" ;;
        gateway*) start_gateway "$1" ;;
        proxy) start_proxy ;;
    esac
}

# Whether the process of a part runs.
runs() { [[ -e $FOLDER/$1.pid ]] && [[ $(ps -o stat= -p "$(<"$FOLDER/$1.pid")") == [!Z]* ]]; }

# Kills a part with all of its processes, as a loss of power would, and returns when none is left.
kill_part() {
    local name=$1 pid
    [[ -e $FOLDER/$name.pid ]] || return 0
    pid=$(<"$FOLDER/$name.pid")
    # The processes of a database lead groups of their own, and it must start no other one meanwhile.
    kill -STOP "$pid" 2>/dev/null || true
    local children
    mapfile -t children < <(ps -o pid= --ppid "$pid" | tr -d ' ')
    kill -KILL -- "-$pid" "${children[@]}" 2>/dev/null || true
    wait_until "$name is gone" is_gone "$name" "$pid" "${children[@]}"
    rm -f "$FOLDER/$name.pid"
}

# Whether no process of these is left, and nothing listens any more at the part's port: is_gone NAME PID...
is_gone() {
    local name=$1 IFS=,
    shift
    ! ps -o stat= -p "$*" | grep --quiet --invert-match '^Z' && ! accepts "${PORT[$name]:-0}"
}

# Ends everything that runs. The folder keeps the logs and the data, except for what lies in RabbitMQ's root.
end_all() {
    local name
    for name in proxy "${GATEWAYS[@]}" "${NODES[@]}" "${DATABASES[@]}" epmd; do
        kill_part "$name"
    done
    [[ -z $RABBITMQ_ROOT ]] || rm -rf "${RABBITMQ_ROOT:?}$RABBITMQ_HOME"
}
