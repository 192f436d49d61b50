//! A service manager such as systemd, played by the test: it passes sockets to the server, and gets its reports.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use tempfile::TempDir;

use super::{SOON, Setup};

/// Passes what it has as stdin and stdout on as the descriptors 3 and 4, with the variables of a service manager.
const START: &str = r#"
case $PASSED in
    1) exec 3<&0 0</dev/null ;;
    2) exec 3<&0 4<&1 0</dev/null 1>/dev/null ;;
esac
export LISTEN_FDS=$PASSED LISTEN_PID="${OTHER_PID-$$}" WATCHDOG_PID=$$
unset PASSED
exec "$@"
"#;

/// What the server reports.
pub struct Manager {
    _dir: TempDir,
    reports: UnixDatagram,
    path: String,
}

impl Manager {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let reports = UnixDatagram::bind(&path).expect("a socket");
        reports.set_read_timeout(Some(SOON)).expect("a timeout");
        let path = path.to_str().expect("UTF-8").to_owned();
        Self { _dir: dir, reports, path }
    }

    /// Lets this manager start the server. Without a watchdog, `watchdog_ms` is 0.
    pub fn starts(&self, setup: Setup, watchdog_ms: u32) -> Setup {
        passing(setup, "", Vec::new())
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", &(u64::from(watchdog_ms) * 1000).to_string())
    }

    /// The lines of the next report; `None` if there is none within the timeout.
    fn next(&self) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        let len = self.reports.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).lines().map(str::to_owned).collect())
    }

    /// Waits for a report with a line that starts like this; returns its lines.
    #[track_caller]
    pub fn wait_for(&self, line: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let report = self.next().unwrap_or_else(|| panic!("no {line:?}, but {seen:?}"));
            if report.iter().any(|reported| reported.starts_with(line)) {
                return report;
            }
            seen.push(report);
        }
    }

    /// Whether there is a report within this time, after those that wait already have been read.
    pub fn is_silent_for(&self, time: std::time::Duration) -> bool {
        self.reports.set_nonblocking(true).expect("a socket");
        while self.next().is_some() {}
        self.reports.set_nonblocking(false).expect("a socket");
        self.reports.set_read_timeout(Some(time)).expect("a timeout");
        let report = self.next();
        self.reports.set_read_timeout(Some(SOON)).expect("a timeout");
        report.is_none()
    }
}

/// Passes sockets with these names, which colons separate.
pub fn passing(setup: Setup, names: &str, sockets: Vec<OwnedFd>) -> Setup {
    let count = sockets.len().to_string();
    let setup = setup.wrapper(&["sh", "-c", START, "sh"]).env("PASSED", &count).env("LISTEN_FDNAMES", names);
    setup.descriptors(sockets)
}

/// A socket that listens on a free port of this address.
pub fn listening(address: &str) -> TcpListener {
    TcpListener::bind((address, 0)).expect("a free port")
}
