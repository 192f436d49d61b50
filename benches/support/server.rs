//! The servers that are measured, each a child process that ends when it is dropped, or when the benchmark ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bare;
use super::load::{self, Request};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub api: SocketAddr,
    /// Its log, and its data where it has any.
    folder: TempDir,
}

impl Server {
    /// The product, with an empty data directory in `scratch` and `scratch` as its .blend root.
    pub fn product(scratch: &Path) -> io::Result<Self> {
        Self::product_with(scratch, &[])
    }

    pub fn product_with(scratch: &Path, arguments: &[&str]) -> io::Result<Self> {
        let folder = TempDir::new_in(scratch)?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let command = product_command(PRODUCT, scratch, folder.path(), [any, any], arguments);
        Self::start(command, folder)
    }

    /// Another build of the product, likewise.
    pub fn build(program: &Path, scratch: &Path) -> io::Result<Self> {
        let folder = TempDir::new_in(scratch)?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let command = product_command(program, scratch, folder.path(), [any, any], &[]);
        Self::start(command, folder)
    }

    /// The bare handler: this program once more.
    pub fn bare(scratch: &Path, status: u16, length: u64) -> io::Result<Self> {
        let mut command = ending_with_us(std::env::current_exe()?, "KILL");
        command.args([bare::FLAG, &status.to_string(), &length.to_string()]);
        Self::start(command, TempDir::new_in(scratch)?)
    }

    /// The service in Python, with a broker or without.
    pub fn fastapi(scratch: &Path, amqp_url: Option<&str>) -> io::Result<Self> {
        let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        let python = benches.join(".venv/bin/python");
        if !python.exists() {
            return Err(io::Error::other("no Python packages for the FastAPI peer; benches/run installs them"));
        }
        let mut command = ending_with_us(python, "KILL");
        command.arg(benches.join("peers/fastapi_service.py")).args(amqp_url);
        Self::start(command, TempDir::new_in(scratch)?)
    }

    fn start(mut command: Command, folder: TempDir) -> io::Result<Self> {
        let log = folder.path().join("log");
        // a file, because nobody reads a pipe while the load runs
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, http: nowhere, api: nowhere, folder };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let text = fs::read_to_string(&log)?;
            // an incomplete line may contain half an address
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

    /// Kills it and starts it again with its data; the time until it says that it is ready.
    pub fn restart(mut self, scratch: &Path, arguments: &[&str]) -> io::Result<(Self, Duration)> {
        self.end();
        let [http, api] = free_addresses()?;
        let mut command = product_command(PRODUCT, scratch, self.folder.path(), [http, api], arguments);
        let log = File::create(self.folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let start = Instant::now();
        self.child = command.spawn()?;
        (self.http, self.api) = (http, api);
        let readyz = Request::get("/readyz");
        while load::try_fetch(api, &readyz).ok().is_none_or(|(status, _)| status != 200) {
            if self.child.try_wait()?.is_some() || start.elapsed() > START_TIMEOUT {
                let text = fs::read_to_string(self.folder.path().join("log"))?;
                return Err(io::Error::other(format!("the server does not start again; it says:\n{text}")));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok((self, start.elapsed()))
    }

    /// A memory figure of the kernel for this process, in MiB.
    pub fn memory(&self, name: &str) -> io::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| io::Error::other(format!("the kernel does not say {name}")))
    }

    /// The bytes that it has caused to be written to a disk so far, less those whose files were deleted before.
    pub fn written_bytes(&self) -> io::Result<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let count = |name: &str| {
            let value = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<u64>().ok());
            value.ok_or_else(|| io::Error::other(format!("the kernel does not say {name}")))
        };
        Ok(count("write_bytes")?.saturating_sub(count("cancelled_write_bytes")?))
    }

    /// Its processor time so far.
    pub fn processor_seconds(&self) -> io::Result<f64> {
        Ok(processor_seconds(&self.child.id().to_string())?.own)
    }

    fn end(&mut self) {
        // its folder is deleted, so it need not shut down cleanly
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Seconds on a processor, user and system.
pub struct ProcessorSeconds {
    /// Of the process itself.
    pub own: f64,
    /// Of its children that have ended.
    pub children: f64,
}

/// What the kernel counts for a process: its number, or `self`.
pub fn processor_seconds(process: &str) -> io::Result<ProcessorSeconds> {
    // USER_HZ, which the kernel has fixed for programs
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
    let [user, system, child_user, child_system] = ticks[..] else {
        return Err(io::Error::other(format!("no times in /proc/{process}/stat")));
    };
    Ok(ProcessorSeconds { own: (user + system) / TICKS, children: (child_user + child_system) / TICKS })
}

/// The product.
const PRODUCT: &str = env!("CARGO_BIN_EXE_user-http-server");

fn product_command(
    program: impl AsRef<OsStr>,
    scratch: &Path,
    folder: &Path,
    [http, api]: [SocketAddr; 2],
    arguments: &[&str],
) -> Command {
    let mut command = ending_with_us(program, "KILL");
    command.args(["--http-bind", &http.to_string(), "--api-bind", &api.to_string(), "--data-dir"]);
    command.arg(folder.join("data")).arg("--blend-root").arg(scratch).args(arguments);
    // with its defaults, whatever is set here
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("USER_HTTP_SERVER_") || text.starts_with("RUST_LOG") {
            command.env_remove(&name);
        }
    }
    command
}

/// A program that gets a signal when this one ends, for whatever reason.
pub fn ending_with_us(program: impl AsRef<OsStr>, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

/// Free addresses. Each stays bound until both are chosen.
pub fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}

fn address(log: &str, what: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(&format!("{what} listening on http://"))?;
    rest.lines().next()?.trim().parse().ok()
}

/// Makes a file of so many bytes that are all written and synced: it is in the page cache from then on, and nothing is
/// left to write.
pub fn write_file(folder: &Path, name: &str, bytes: u64) -> io::Result<PathBuf> {
    let path = folder.join(name);
    let mut file = File::create(&path)?;
    io::copy(&mut io::repeat(0x5a).take(bytes), &mut file)?;
    file.sync_all()?;
    Ok(path)
}
