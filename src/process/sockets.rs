//! The listening sockets that a service manager passes to this process: `LISTEN_PID`, `LISTEN_FDS` and
//! `LISTEN_FDNAMES` of `sd_listen_fds(3)`. Without these variables, the process binds its own.

use std::env;
use std::net::TcpListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use user_http_server::{Config, Listeners};

/// The name of the socket of the worker server.
const WORKER: &str = "worker";

/// The name of the socket of the API server.
const API: &str = "api";

/// The sockets that were passed.
#[derive(Debug, Default)]
pub struct Inherited {
    http: Option<TcpListener>,
    api: Option<TcpListener>,
}

impl Inherited {
    /// Takes them. Call it once, before the process opens files and starts threads that read the environment: the
    /// sockets have fixed numbers, and the variables are removed, so that child processes do not get them.
    ///
    /// # Errors
    /// What is wrong with the sockets, and what would be right.
    pub fn take() -> Result<Self, String> {
        // The crate takes sockets for any process if this variable is not set; sd_listen_fds(3) takes none.
        let mut sockets = if env::var_os("LISTEN_PID").is_some() { ListenFd::from_env() } else { ListenFd::empty() };
        let count = sockets.len();
        if count == 0 {
            return Ok(Self::default());
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<_> = names.split(':').collect();
        if names.len() != count {
            return Err(format!(
                "the service manager has passed {count} sockets, but LISTEN_FDNAMES={:?}; {EXPECTED}",
                names.join(":")
            ));
        }
        let mut inherited = Self::default();
        for (index, name) in names.into_iter().enumerate() {
            let slot = match name {
                WORKER => &mut inherited.http,
                API => &mut inherited.api,
                _ => return Err(format!("the service manager has passed a socket with the name {name:?}; {EXPECTED}")),
            };
            if slot.is_some() {
                return Err(format!("the service manager has passed two sockets with the name {name:?}; {EXPECTED}"));
            }
            let socket = sockets.take_tcp_listener(index).map_err(|error| error.to_string());
            let socket = socket.and_then(|socket| socket.ok_or_else(|| "it was taken before".to_owned()));
            let listening = socket.and_then(|socket| match socket_acceptconn(&socket) {
                Ok(true) => Ok(socket),
                Ok(false) => Err("it does not listen".to_owned()),
                Err(error) => Err(error.to_string()),
            });
            let listening = listening.map_err(|why| {
                format!(
                    "the socket {name:?} that the service manager has passed cannot be used: {why}; expected a \
                     listening TCP socket (ListenStream= with an address and a port)"
                )
            })?;
            *slot = Some(listening);
        }
        Ok(inherited)
    }

    /// Whether any socket was passed. The service manager keeps it open when this process ends.
    pub fn is_any(&self) -> bool {
        self.http.is_some() || self.api.is_some()
    }

    /// These sockets, if the configuration allows their addresses, which it then does not decide.
    ///
    /// # Errors
    /// The API server would be open to the network by accident.
    pub fn checked(self, config: &Config) -> Result<Self, String> {
        let passed =
            [(WORKER, "http-bind", &self.http, config.http_bind), (API, "api-bind", &self.api, config.api_bind)];
        for (name, setting, socket, configured) in passed {
            let Some(socket) = socket else { continue };
            let address =
                socket.local_addr().map_err(|error| format!("the socket {name:?} has no address: {error}"))?;
            if name == API {
                config.check_api_address(address).map_err(|why| {
                    format!("the socket {name:?} that the service manager has passed listens on {address}: {why}")
                })?;
            }
            let unused =
                if address == configured { String::new() } else { format!("; --{setting} {configured} is not used") };
            log::info!("the service manager has passed the socket {name:?} of {address}{unused}");
        }
        Ok(self)
    }

    /// The sockets of both servers. Those that were not passed are bound to the addresses of the configuration.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn into_listeners(self, config: &Config) -> Result<Listeners, String> {
        Listeners::complete(self.http, self.api, config)
    }
}

/// What would be right.
const EXPECTED: &str = "expected one with the name \"worker\", one with the name \"api\", or both \
                        (FileDescriptorName= of systemd.socket)";
