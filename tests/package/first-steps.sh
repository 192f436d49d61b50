# The first steps of docs/deployment.md, on a machine on which the package has just been installed. For bash.

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
