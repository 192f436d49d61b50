//! `requests` does not notice that one process takes over the sockets of another. A thread that hangs stops the
//! watchdog.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::harness::{Manager, SOON, Setup, eventually, holds, listening, passing, peer_command};

#[test]
fn no_request_of_pythons_requests_fails_while_a_process_replaces_another() {
    let sockets = [listening("127.0.0.1"), listening("127.0.0.1")];
    let mut server = passing(Setup::default(), "worker:api", sockets.map(Into::into).into()).start();
    let mut clients = peer_command("steady_clients.py");
    clients.args([server.worker_url(), server.api_url("/")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut clients = Killed(clients.spawn().expect("Python"));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1500));
        server.replace();
    }
    drop(clients.0.stdin.take());
    let mut result = String::new();
    clients.0.stdout.take().expect("a pipe").read_to_string(&mut result).expect("a result");
    let result: serde_json::Value = serde_json::from_str(&result).expect("JSON");
    assert_eq!(result["failures"], serde_json::json!([]), "{result}");
    assert!(result["requests"].as_u64() > Some(100), "{result}");
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // fails only if it has ended
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The threads whose name starts like this.
fn threads(pid: u32, name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a live process");
    let tasks = tasks.map(|task| task.expect("a thread").path());
    let named =
        tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    named.map(|task| task.file_name().expect("a number").to_string_lossy().into_owned()).collect()
}

#[test]
fn a_hanging_thread_of_the_actors_or_of_a_server_stops_the_watchdogs_feed() {
    const LIMIT_MS: u32 = 600;
    let manager = Manager::new();
    let server = manager.starts(Setup::default(), LIMIT_MS).start();
    let main = server.pid().to_string();
    let of_servers = threads(server.pid(), "actix-rt|system");
    assert!(of_servers.len() >= 2, "{of_servers:?}");
    for thread in [&main, &of_servers[0], of_servers.last().expect("one")] {
        manager.wait_for("WATCHDOG=1");
        let mut hanging = peer_command("hang_thread.py");
        hanging.arg(thread).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut hanging = Killed(hanging.spawn().expect("Python"));
        let mut line = [0; 8];
        let stdout = hanging.0.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut line).expect("the thread hangs");
        assert_eq!(&line, b"hanging\n");
        assert!(manager.is_silent_for(Duration::from_millis(3 * u64::from(LIMIT_MS))), "{thread} hangs");
        drop(hanging.0.stdin.take());
        eventually("the thread runs on", SOON, || {
            holds(hanging.0.try_wait().expect("a child").is_some(), "it is still held")
        });
    }
    manager.wait_for("WATCHDOG=1");
    assert!(server.log().contains("the watchdog gets no sign of life"), "{}", server.log());
}
