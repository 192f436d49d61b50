//! The servers that are measured, each a child process that ends when it is dropped.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bare;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub api: SocketAddr,
    /// Its log, and its data where it has any.
    _folder: TempDir,
}

impl Server {
    /// The product, with a data directory of its own in `scratch` and `scratch` as its .blend root.
    pub fn product(scratch: &Path) -> io::Result<Self> {
        let folder = TempDir::new_in(scratch)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_user-http-server"));
        command.args(["--http-bind", "127.0.0.1:0", "--api-bind", "127.0.0.1:0", "--data-dir"]);
        command.arg(folder.path().join("data")).arg("--blend-root").arg(scratch);
        // with its defaults, whatever is set here
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("USER_HTTP_SERVER_") || text.starts_with("RUST_LOG") {
                command.env_remove(&name);
            }
        }
        Self::start(command, folder)
    }

    /// The bare handler: this program once more.
    pub fn bare(scratch: &Path, status: u16, length: u64, file: &str) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([bare::FLAG, &status.to_string(), &length.to_string()]).arg(scratch.join(file));
        Self::start(command, TempDir::new_in(scratch)?)
    }

    fn start(mut command: Command, folder: TempDir) -> io::Result<Self> {
        let log = folder.path().join("log");
        // a file, since somebody would have to read from a pipe while the load runs
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, http: nowhere, api: nowhere, _folder: folder };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let text = fs::read_to_string(&log)?;
            // a line that is not whole yet may show half an address
            let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let found = |what| address(whole, what);
            if let (Some(http), Some(api)) = (found("worker server"), found("API server")) {
                (server.http, server.api) = (http, api);
                return Ok(server);
            }
            if server.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!("a server does not start; it says:\n{text}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A line of the kernel's about its memory, in KiB; None where the kernel has no such file.
    pub fn memory(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // what it has stored goes with its folder, so it need not stop in order
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(log: &str, what: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(&format!("{what} listening on http://"))?;
    rest.lines().next()?.trim().parse().ok()
}
