//! Prometheus as a child process, which scrapes a gateway and evaluates the rules of `deploy/alerts.yml` in a hurry.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{SOON, eventually, free_address, holds, request};

const CONFIGURATION: &str = "\
global: { scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }
rule_files: [alerts.yml]
scrape_configs:
  - job_name: user-http-server
    file_sd_configs: [{ files: [targets.json] }]
";

/// What is shortened in the rules, so that a test need not wait for minutes.
const SHORTENED: [(&str, &str); 6] = [
    ("for: 1m", "for: 1s"),
    ("for: 2m", "for: 1s"),
    ("for: 5m", "for: 10s"),
    ("[5m]", "[6s]"),
    ("> 600", "> 3"),
    ("< 1800", "< 10"),
];

pub struct Prometheus {
    folder: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    /// Scrapes the gateway whose API server is there, and waits until it has done so.
    pub fn watching(api: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("prometheus-").tempdir().expect("a folder for the test");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("prometheus.yml"), CONFIGURATION).expect("a configuration");
        let mut rules = rules();
        for (long, short) in SHORTENED {
            assert!(rules.contains(long), "{long}");
            rules = rules.replace(long, short);
        }
        fs::write(path("alerts.yml"), rules).expect("rules");
        set_target(folder.path(), api);
        let free = free_address();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).expect("a log"))
            .spawn()
            .expect("prometheus, of the package prometheus");
        let this = Self { folder, address: free, child };
        eventually("Prometheus scrapes the gateway", SOON, || {
            let is_ready = TcpStream::connect(free).is_ok() && request(free, "GET", "/-/ready", &[], b"").status == 200;
            if !is_ready {
                return Err(fs::read_to_string(this.folder.path().join("log")).unwrap_or_default());
            }
            let up = this.query("up");
            holds(up.iter().any(|sample| sample["value"][1] == "1"), format!("{up:?}"))
        });
        this
    }

    /// The gateway is there from now on.
    pub fn watch(&self, api: SocketAddr) {
        set_target(self.folder.path(), api);
    }

    /// The samples that an expression gives.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.get(&format!("/api/v1/query?query={query}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("samples").clone()
    }

    /// The alerts that fire.
    #[track_caller]
    fn firing(&self) -> BTreeSet<String> {
        let answer = self.get("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().expect("alerts");
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits until this alert fires, and no other. `cause` is called again and again until then.
    #[track_caller]
    pub fn wait_for(&self, alert: &str, mut cause: impl FnMut()) {
        let wanted = BTreeSet::from([alert.to_owned()]);
        eventually(&format!("{alert} fires"), SOON, || {
            cause();
            let firing = self.firing();
            holds(firing == wanted, firing)
        });
    }

    /// Waits until no alert fires.
    #[track_caller]
    pub fn wait_for_silence(&self) {
        eventually("no alert fires", SOON, || {
            let firing = self.firing();
            holds(firing.is_empty(), firing)
        });
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        request(self.address, "GET", path, &[], b"").json()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // This fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `deploy/alerts.yml`.
pub fn rules() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/alerts.yml")).expect("the rules")
}

/// In one step, because Prometheus notices every change.
fn set_target(folder: &Path, api: SocketAddr) {
    let targets = json!([{ "targets": [api.to_string()], "labels": { "instance": "gateway" } }]);
    fs::write(folder.join("new.json"), targets.to_string()).expect("a target");
    fs::rename(folder.join("new.json"), folder.join("targets.json")).expect("the same folder");
}
