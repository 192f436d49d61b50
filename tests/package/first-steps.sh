#!/bin/bash
# The first steps of docs/deployment.md, on a Debian system on which the package has just been installed.
set -euo pipefail

# the gateway's settings for the commands that are typed
export USER_HTTP_SERVER_CONFIG=/etc/user-http-server/config.toml

# tokens
umask 077
cd /etc/user-http-server
user-http-server token >/root/alice.token
echo "$(cat /root/alice.token) alice" >worker-tokens
user-http-server token >/root/manager.token
echo "$(cat /root/manager.token) user-manager" >api-tokens
chown root:user-http-server worker-tokens api-tokens
chmod 640 worker-tokens api-tokens

# settings
install -d -m 755 /srv/blends
cat >>config.toml <<'END'
worker-token-file = "/etc/user-http-server/worker-tokens"
api-token-file = "/etc/user-http-server/api-tokens"
blend-root = ["/srv/blends"]
END

# start
user-http-server check
systemctl restart user-http-server
user-http-server healthcheck
user-http-server doctor

# a message, as the communication interface and as a worker
curl -sS http://127.0.0.1:10001/CommunicationInterface/AddBufferMsg \
  -H "Authorization: Bearer $(cat /root/manager.token)" \
  -d '{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "job-1", "BUFFER_MSG": {"FRAMES": [1]}}}'
user-http-server messages list
curl -sS -o /root/message.pickle -H "Authorization: Bearer $(cat /root/alice.token)" \
  'http://127.0.0.1:10000/?bufferUUID=job-1'

# a frame, as a worker
curl -sS http://127.0.0.1:10000/ \
  -H "Authorization: Bearer $(cat /root/alice.token)" -H 'Content-Type: application/json' \
  -d '{"USER_ID": "alice", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": {"FRAME": 1, "IMAGE": "pixels"}}}'
user-http-server messages list

# what has come out of it
grep -q FRAMES /root/message.pickle
user-http-server messages list | grep -q '^outbox '
if user-http-server messages list | grep -q job-1; then exit 1; fi

# TLS: the service and the typed commands can read the same files, whether it runs or not
cd /root
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout farm.key -out farm.pem \
  -subj /CN=localhost 2>/dev/null
install -m 644 farm.pem /etc/user-http-server/http-cert.pem
install -m 640 -g user-http-server farm.key /etc/user-http-server/http-key.pem
cat >>/etc/user-http-server/config.toml <<'END'
http-tls-cert = "/etc/user-http-server/http-cert.pem"
http-tls-key = "/etc/user-http-server/http-key.pem"
END
systemctl restart user-http-server
user-http-server doctor
systemctl stop user-http-server
user-http-server check
user-http-server doctor

# .blend files
touch /srv/blends/scene.blend
chmod 644 /srv/blends/scene.blend
runuser -u user-http-server -- test -r /srv/blends/scene.blend

# a file that the service may not read stops its start, with the reason
chmod 600 /etc/user-http-server/worker-tokens
if systemctl restart user-http-server >refused 2>&1; then exit 1; fi
grep -q 'worker-tokens.*ermission denied' refused
chmod 640 /etc/user-http-server/worker-tokens
