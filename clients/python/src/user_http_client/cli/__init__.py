"""The command `user-http-client`."""
