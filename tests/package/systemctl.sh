#!/bin/bash
# Stands in for systemctl on a Debian system without systemd: `restart` and `stop` of user-http-server run and end the
# commands of its unit as systemd would, as its user, in its folder, with its variables and copies of its credentials.
# The confinement of the unit is not there.
set -euo pipefail

unit=/usr/lib/systemd/system/user-http-server.service
credentials=/run/credentials/user-http-server.service
pid_file=/run/user-http-server.pid

value() { sed -n "s#%d#$credentials#g; s#%S#/var/lib#g; s/^$1=//p" "$unit"; }

stop() {
    [[ -e $pid_file ]] || return 0
    local pid
    pid=$(cat "$pid_file")
    kill -TERM "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    rm -rf "$pid_file" "$credentials"
}

refuse() {
    cat /run/user-http-server.log >&2
    exit 1
}

start() {
    local user source name variables
    user=$(value User)
    install -d -o "$user" -g "$user" -m "$(value StateDirectoryMode)" "/var/lib/$(value StateDirectory)"
    install -d -o "$user" -m 500 "$credentials"
    while IFS=: read -r name source; do
        install -o "$user" -m 400 "$source" "$credentials/$name"
    done < <(value LoadCredential)
    readarray -t variables < <(value Environment)
    local as_service=(env -i "PATH=$PATH" "${variables[@]}" setpriv --reuid "$user" --regid "$(value Group)"
        --init-groups --no-new-privs)
    cd "$(value WorkingDirectory)"
    # shellcheck disable=SC2046
    "${as_service[@]}" $(value ExecStartPre) >/run/user-http-server.log 2>&1 || refuse
    # shellcheck disable=SC2046
    setsid "${as_service[@]}" $(value ExecStart) >>/run/user-http-server.log 2>&1 &
    echo $! >"$pid_file"
    # Type=notify: the service has started when both servers answer
    until USER_HTTP_SERVER_CONFIG=/etc/user-http-server/config.toml user-http-server healthcheck >/dev/null 2>&1; do
        kill -0 "$(cat "$pid_file")" 2>/dev/null || refuse
        sleep 0.05
    done
}

[[ ${2-} == user-http-server ]] || { echo "systemctl: this one does not know: $*" >&2; exit 1; }
case $1 in
    restart)
        stop
        start
        ;;
    stop) stop ;;
    *) echo "systemctl: this one does not know: $*" >&2; exit 1 ;;
esac
