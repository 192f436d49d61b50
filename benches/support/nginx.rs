//! The peer of downloads: nginx with a configuration of its own, in a folder of its own.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bench::cores;
use super::server::{ending_with_us, free_addresses};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `GET /file`, and a small answer at `GET /small`.
pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    pub fn start(scratch: &Path, file: &Path, small: usize) -> io::Result<Self> {
        let folder = TempDir::new_in(scratch)?;
        let [address, _] = free_addresses()?;
        let home = folder.path();
        fs::write(home.join("small"), vec![b'x'; small])?;
        fs::write(home.join("nginx.conf"), configuration(home, file, address))?;
        let mut command = ending_with_us("nginx", "TERM");
        command.env("PATH", "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin");
        command.arg("-c").arg(home.join("nginx.conf")).arg("-p").arg(home).arg("-e").arg(home.join("error.log"));
        let log = fs::File::create(home.join("output"))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut nginx = Self { child, address, folder };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            if nginx.child.try_wait()?.is_some() || Instant::now() > deadline {
                let text = fs::read_to_string(nginx.folder.path().join("output"))?;
                return Err(io::Error::other(format!("nginx (package nginx-light) does not start:\n{text}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGKILL would leave its workers behind
        let _ = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// As many workers as the product has; no access log, `sendfile` and `tcp_nopush`, open files kept.
fn configuration(home: &Path, file: &Path, address: SocketAddr) -> String {
    let (workers, home, file) = (cores(), home.display(), file.display());
    // otherwise the workers run as nobody, who cannot read the folder
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {home}/{kind};\n"))
        .concat();
    format!(
        "{user}
daemon off;
pid {home}/pid;
worker_processes {workers};
events {{ worker_connections 4096; }}
http {{
{temporary}
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 100000000;
    open_file_cache max=16 inactive=1h;
    default_type application/octet-stream;
    server {{
        listen {address};
        location = /file {{ alias {file}; }}
        location = /small {{ alias {home}/small; }}
    }}
}}
"
    )
}
