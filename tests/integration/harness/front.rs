//! A reverse proxy in front of the server, with the configuration that `docs/proxies.md` shows.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Ca, Client, Connection, Program, SOON, Server, eventually, free_address};

/// The proxies that `docs/proxies.md` configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    HaProxy,
    Caddy,
}

impl Kind {
    /// The file of its configuration in `tests/proxies`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Nginx => "nginx.conf",
            Self::HaProxy => "haproxy.cfg",
            Self::Caddy => "Caddyfile",
        }
    }

    /// Its configuration as the documentation shows it.
    pub fn configuration(self) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxies").join(self.file());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// A running proxy, killed when dropped.
pub struct Front {
    /// Where workers reach it, over TLS.
    pub workers: SocketAddr,
    /// The address for the farm's services.
    pub services: SocketAddr,
    /// A client that trusts its certificate.
    pub client: Client,
    _program: Program,
    _folder: TempDir,
}

impl Front {
    /// Starts a proxy in front of a server.
    #[track_caller]
    pub fn start(kind: Kind, server: &Server) -> Self {
        Self::with(kind, [server.http, server.api], &kind.configuration())
    }

    /// Starts a proxy in front of these addresses of a worker server and an API server.
    #[track_caller]
    pub fn with(kind: Kind, behind: [SocketAddr; 2], configuration: &str) -> Self {
        let ca = Ca::new();
        let client = Client::trusting(&ca);
        let folder = tempfile::Builder::new().prefix("uhs-front-").tempdir().expect("a folder for the proxy");
        let identity = ca.issue();
        identity.write(folder.path(), "farm");
        let with_key = identity.chain.clone() + &identity.key;
        fs::write(folder.path().join("farm-with-key.pem"), with_key).expect("a PEM file");
        let [workers, services] = [(); 2].map(|()| free_address());
        let file = folder.path().join(kind.file());
        let adapted = adapt(kind, configuration, folder.path(), behind, [workers, services]);
        fs::write(&file, adapted).expect("a configuration");
        let mut program = Program::start(&mut command(kind, folder.path(), &file));
        eventually("the proxy answers", SOON, || {
            if let Some(ended) = program.try_end() {
                panic!("{kind:?} does not start: {ended:?}");
            }
            client.try_shake_hands(workers).map_err(|error| error.to_string())?;
            let mut connection = Connection::try_open(services).map_err(|error| error.to_string())?;
            connection.try_send_request("GET", "/healthz", &[], b"").map_err(|error| error.to_string())?;
            let answer = connection.try_read_response().map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        Self { workers, services, client, _program: program, _folder: folder }
    }
}

/// The documented configuration, with the addresses and files of a test.
#[track_caller]
fn adapt(
    kind: Kind,
    configuration: &str,
    folder: &Path,
    [http, api]: [SocketAddr; 2],
    [workers, services]: [SocketAddr; 2],
) -> String {
    let home = folder.display();
    let listening = match kind {
        Kind::Nginx => {
            [("listen 443 ssl", format!("listen {workers} ssl")), ("listen 8001", format!("listen {services}"))]
        }
        Kind::HaProxy => [("bind :443", format!("bind {workers}")), ("bind :8001", format!("bind {services}"))],
        Kind::Caddy => [
            ("https://:443", format!("https://:{}", workers.port())),
            ("http://:8001", format!("http://:{}", services.port())),
        ],
    };
    let mut adapted = configuration.to_owned();
    let behind = [("127.0.0.1:10000", http.to_string()), ("127.0.0.1:10001", api.to_string())];
    let files = [("/etc/ssl/farm", format!("{home}/farm"))];
    for (documented, own) in listening.into_iter().chain(behind).chain(files) {
        assert!(adapted.contains(documented), "{kind:?}: {documented:?} is not in {adapted}");
        adapted = adapted.replace(documented, &own);
    }
    match kind {
        Kind::Nginx => {
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {home}/{kind};\n"))
                .concat();
            // a single process, so that killing it leaves nothing behind
            format!(
                "daemon off;\nmaster_process off;\npid {home}/pid;\nerror_log {home}/error.log;\nevents {{}}\n\
                 http {{\naccess_log off;\n{temporary}{adapted}\n}}\n"
            )
        }
        Kind::HaProxy => adapted,
        Kind::Caddy => adapted.replace("auto_https off", "auto_https off\n\tadmin off\n\tdefault_bind 127.0.0.1"),
    }
}

fn command(kind: Kind, folder: &Path, file: &Path) -> Command {
    // Debian installs daemons in folders that are not in an ordinary user's PATH
    let mut command = Command::new("env");
    command.arg("PATH=/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin");
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
    match kind {
        Kind::Nginx => command.args(["nginx", "-p"]).arg(folder).arg("-e").arg(folder.join("error.log")).arg("-c"),
        Kind::HaProxy => command.args(["haproxy", "-db", "-f"]),
        Kind::Caddy => command.args(["caddy", "run", "--adapter", "caddyfile", "--config"]),
    };
    command.arg(file).env("HOME", folder).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
    command
}
