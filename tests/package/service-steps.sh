#!/bin/bash
# Runs under systemd, on a machine without the package. service.sh starts it.
set -euo pipefail

stop() { systemctl stop user-http-server.socket user-http-server-api.socket user-http-server; }
# Restarts the service, which must refuse with this error.
refused() {
    ! systemctl restart user-http-server || exit 1
    journalctl --sync
    journalctl --output=cat --unit=user-http-server | grep "$1"
    stop
    # systemd tries again a few times, and then takes no order for a while
    systemctl reset-failed
}

main_pid() { systemctl show --property=MainPID --value user-http-server; }
# Installs a package over another; the service must have been replaced.
replaces() {
    local before
    before=$(main_pid)
    dpkg --force-downgrade --install "$1"
    [[ $(main_pid) != "$before" ]] || exit 1
    user-http-server healthcheck
}
# Posts frames, each over a connection of its own, until there is a file /root/end; counts them.
post_frames() {
    local posted=0 frame='{"USER_ID": "me", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": 1}}'
    until [[ -e /root/end ]]; do
        curl -sS --fail --max-time 30 -o /dev/null -H 'Content-Type: application/json' -d "$frame" \
            http://127.0.0.1:10000/
        posted=$((posted + 1))
    done
    echo "$posted" >"/root/posted-$1"
}

systemctl start basic.target
dpkg --install /mnt/package.deb
systemctl is-active user-http-server

# an upgrade and the way back, while workers post frames: none fails, and none is lost
set +x
post_frames 1 &
workers=($!)
post_frames 2 &
workers+=($!)
set -x
for package in /mnt/{other,package}.deb; do
    sleep 1
    replaces "$package"
done
sleep 1
touch /root/end
wait "${workers[0]}"
wait "${workers[1]}"
posted=$(awk '{ sum += $1 } END { print sum }' /root/posted-1 /root/posted-2)
waiting=$(user-http-server messages list | grep -c '^outbox ')
[[ $waiting == "$posted" ]] || exit 1

# in the folder of the shell, as its reader would
. /mnt/first-steps.sh
grep -q FRAMES /root/message.pickle
user-http-server messages list | grep '^outbox '
[[ $(user-http-server messages list) != *job-1* ]] || exit 1
ls /var/lib/user-http-server/data/outbox

# a backup of the running service, made by root, is restored as docs/backup.md says
kept=$(user-http-server messages list | grep -c '^outbox ')
user-http-server backup /var/backups/monday
stop
mv /var/lib/user-http-server/data /var/lib/user-http-server/data.old
cp -a /var/backups/monday /var/lib/user-http-server/data
systemctl start user-http-server
user-http-server healthcheck
[[ $(user-http-server messages list | grep -c '^outbox ') == "$kept" ]] || exit 1
systemctl is-active user-http-server.socket user-http-server-api.socket

# TLS: the service and the typed commands read the same files, and it need not run for them
cd /root
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout farm.key -out farm.pem \
  -subj /CN=localhost
install -m 644 farm.pem /etc/user-http-server/http-cert.pem
install -m 640 -g user-http-server farm.key /etc/user-http-server/http-key.pem
cat >>/etc/user-http-server/config.toml <<'END'
http-tls-cert = "/etc/user-http-server/http-cert.pem"
http-tls-key = "/etc/user-http-server/http-key.pem"
END
systemctl restart user-http-server
curl -sS --insecure -o /dev/null https://127.0.0.1:10000/
user-http-server doctor
stop
user-http-server check
user-http-server doctor
systemctl start user-http-server

# a reload checks the settings as they are in the file
systemctl reload user-http-server
cp /etc/user-http-server/config.toml good.toml
echo 'max-body = "0"' >>/etc/user-http-server/config.toml
! systemctl reload user-http-server || exit 1
user-http-server healthcheck --config good.toml
cp good.toml /etc/user-http-server/config.toml

# a file that the service may not read stops its start
chmod 600 /etc/user-http-server/worker-tokens
refused 'worker-tokens.*ermission denied'
chmod 640 /etc/user-http-server/worker-tokens

# another data directory, a group of artists, and a password in the unit
install -d -o user-http-server -g user-http-server -m 700 /srv/gateway
sed -i 's#^data-dir = .*#data-dir = "/srv/gateway/data"#' /etc/user-http-server/config.toml
refused 'Read-only file system.*ReadWritePaths='
groupadd artists
chgrp artists /srv/blends
chmod 750 /srv/blends
echo scene >/srv/blends/scene.blend
chgrp artists /srv/blends/scene.blend
chmod 640 /srv/blends/scene.blend
! runuser -u user-http-server -- test -r /srv/blends/scene.blend || exit 1
usermod -aG artists user-http-server
runuser -u user-http-server -- test -r /srv/blends/scene.blend
mkdir /etc/systemd/system/user-http-server.service.d
cat >/etc/systemd/system/user-http-server.service.d/override.conf <<'END'
[Service]
ReadWritePaths=/srv/gateway
Environment=USER_HTTP_SERVER_AMQP_URL=amqp://gateway:100%%25@rabbitmq.example/
END
systemctl daemon-reload
systemctl restart user-http-server
systemctl show --property=Environment user-http-server | grep 'gateway:100%25@'
ls /srv/gateway/data/outbox
curl -sS -o /dev/null http://127.0.0.1:10001/CommunicationInterface/AddBufferMsg \
  -H "Authorization: Bearer $(cat /root/manager.token)" -d '{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "job-2",
    "BUFFER_MSG": {"DATA": {"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend"}}}}'
curl -sS --insecure -o message.pickle -H "Authorization: Bearer $(cat /root/alice.token)" \
  'https://127.0.0.1:10000/?bufferUUID=job-2'
grep -q scene message.pickle

# the new program is asked before the upgrade
cp /mnt/package.deb /root/user-http-server_0-1_amd64.deb
dpkg-deb --extract ./user-http-server_*.deb /root/new-version
/root/new-version/usr/bin/user-http-server check --config /etc/user-http-server/config.toml

# a program that refuses its settings does not replace the one that runs
before=$(main_pid)
cp /etc/user-http-server/config.toml good.toml
echo 'max-body = "0"' >>/etc/user-http-server/config.toml
dpkg --force-confold --install /mnt/package.deb 2>&1 | grep 'max-body'
[[ $(main_pid) == "$before" ]] || exit 1
cp good.toml /etc/user-http-server/config.toml
user-http-server healthcheck

# an upgrade keeps the file and its mode
chmod 600 /etc/user-http-server/config.toml
replaces /mnt/package.deb
[[ $(stat -c %a /etc/user-http-server/config.toml) == 600 ]] || exit 1
[[ $(ls /var/lib/user-http-server/data/RUNNING 2>/dev/null) == '' ]] || exit 1
