//! A private RabbitMQ for tests, with its own ports, folder and epmd. It ends with the process that started it.
//!
//! Included by path from the test binaries of both packages, so it needs nothing but the standard library and
//! `ports.rs`, and not every binary uses all of it.
#![allow(dead_code)]

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::ports::free_port;

/// A start takes 4 to 8 s on two idle cores; longer on a machine that compiles at the same time.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// The programs in this folder run under any user; Debian's wrappers in `/usr/sbin` require the user `rabbitmq`.
const BIN: &str = "/usr/lib/rabbitmq/bin";
/// A nearly full disk of the test machine must not raise the disk alarm; and a chroot may have no `/proc` to read the
/// memory's use and size from.
const CONFIGURATION: &str = "disk_free_limit.absolute = 1MB
vm_memory_calculation_strategy = allocated
total_memory_available_override_value = 4GB
";

/// A RabbitMQ node of the machine's own package, or of a chroot's, on `127.0.0.1`.
///
/// Dropping it kills the node and removes its folder. So does the end of the test process, however it ends, so one
/// may live in a `static`.
#[derive(Debug)]
pub struct RabbitMq {
    /// The port of AMQP; stays the same through restarts.
    pub port: u16,
    /// The port of AMQP over TLS, where there is one.
    pub tls_port: Option<u16>,
    chroot: Option<PathBuf>,
    /// The node's folder, as the node sees it.
    home: PathBuf,
    node: String,
    epmd_port: u16,
    dist_port: u16,
    /// Where the nodes of a cluster find each other. Outlives a killed node.
    epmd: Option<Arc<Guarded>>,
    running: Option<Guarded>,
}

/// The Debian in a folder that has RabbitMQ 4.0.
fn root_of_4_0() -> PathBuf {
    if let Some(root) = std::env::var_os("TEST_RABBITMQ4_ROOT") {
        return root.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.expect("HOME in the environment").join("user-http-server/rabbitmq-4")
}

/// A process that leads a process group of its own, and ends with the process that started it.
#[derive(Debug)]
struct Guarded {
    process: Child,
    /// Waits for the end of its standard input, which comes when this process ends. Kills the process then, and removes
    /// the node's folder.
    janitor: Child,
}

impl Guarded {
    fn new(process: Child, folder: &Path) -> Self {
        let janitor = Command::new("sh")
            .arg("-c")
            // `env`, since the shell's own `kill` takes no `--` everywhere.
            .arg("read _; env kill -s KILL -- \"-$0\" 2>/dev/null; rm -rf \"$1\"")
            .arg(process.id().to_string())
            .arg(folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh");
        Self { process, janitor }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.janitor.kill().ok();
        signal_group("KILL", &self.process);
        self.janitor.wait().ok();
        self.process.wait().ok();
    }
}

impl RabbitMq {
    /// Starts the machine's RabbitMQ and waits until it accepts connections.
    ///
    /// # Panics
    /// Where there is none, or it does not start within 90 s: tests against a broker are never skipped silently.
    pub fn start() -> Self {
        let mut broker = Self::prepare();
        broker.launch();
        broker
    }

    /// As [`RabbitMq::start`], with the RabbitMQ 4.0 that `tests/run` has installed. Needs root's rights.
    pub fn start_4_0() -> Self {
        let root = root_of_4_0();
        assert!(
            root.join("complete").exists(),
            "no RabbitMQ 4.0 in {}; run ./tests/run once, it makes it",
            root.display()
        );
        let mut broker = Self::prepare_in(Some(&root));
        broker.launch();
        broker
    }

    /// A cluster of so many nodes of that RabbitMQ. Needs root's rights.
    pub fn start_cluster_4_0(size: usize) -> Vec<Self> {
        let mut nodes: Vec<Self> = (0..size).map(|_| Self::prepare_in(Some(&root_of_4_0()))).collect();
        let epmd_port = nodes[0].epmd_port;
        for node in &mut nodes {
            node.epmd_port = epmd_port;
            let cookie = node.folder().join(".erlang.cookie");
            fs::write(&cookie, "the-same-on-each-node").expect("the node's cookie");
            fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).expect("a cookie for its owner alone");
        }
        for at in 0..size {
            nodes[at].epmd = nodes[0].epmd.clone();
            nodes[at].launch();
            if at > 0 {
                nodes[at].join(&nodes[0]);
            }
        }
        nodes
    }

    /// Joins the cluster of another node, with nothing of its own.
    fn join(&self, other: &Self) {
        self.ctl(&["stop_app"]);
        self.ctl(&["join_cluster", &other.node]);
        self.ctl(&["start_app"]);
    }

    /// A broker with its port chosen that does not run yet.
    pub fn prepare() -> Self {
        Self::prepare_in(None)
    }

    fn prepare_in(chroot: Option<&Path>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rabbit-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // A chroot sees only what lies in it.
        let home = if chroot.is_some() { Path::new("/tmp").join(&name) } else { std::env::temp_dir().join(&name) };
        let [port, epmd_port, dist_port] = [(); 3].map(|()| free_port());
        let broker = Self {
            port,
            tls_port: None,
            chroot: chroot.map(Path::to_owned),
            home,
            node: format!("{name}@localhost"),
            epmd_port,
            dist_port,
            epmd: None,
            running: None,
        };
        let folder = broker.folder();
        fs::create_dir_all(&folder).expect("a folder for the broker");
        fs::write(folder.join("rabbitmq.conf"), CONFIGURATION).expect("the broker's configuration");
        fs::write(folder.join("enabled_plugins"), "[].\n").expect("the broker's list of plugins");
        fs::write(folder.join("env.conf"), "").expect("the broker's environment");
        if let Some(hosts) = chroot.map(|root| root.join("etc/hosts")).filter(|hosts| !hosts.exists()) {
            fs::write(hosts, "127.0.0.1 localhost\n").expect("the chroot's hosts");
        }
        broker
    }

    /// As [`RabbitMq::launch`], with TLS on a second port, for which there are these files in PEM.
    pub fn launch_with_tls(&mut self, certificate: &str, key: &str) {
        let port = free_port();
        let tls = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {certificate}\n\
             ssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\nssl_options.verify = verify_none\n\
             ssl_options.fail_if_no_peer_cert = false\n"
        );
        let configuration = format!("{CONFIGURATION}{tls}");
        fs::write(self.folder().join("rabbitmq.conf"), configuration).expect("the broker's configuration");
        self.tls_port = Some(port);
        self.launch();
    }

    /// Starts a broker that does not run, with the data that an earlier run has left, and waits until it accepts
    /// connections.
    pub fn launch(&mut self) {
        assert!(self.running.is_none(), "the broker is running already");
        if self.epmd.is_none() {
            let epmd = self.command("epmd").process_group(0).spawn().expect("epmd of the package erlang-base");
            self.epmd = Some(Arc::new(Guarded::new(epmd, &self.folder())));
        }
        let log = fs::File::create(self.folder().join("output")).expect("the broker's output");
        let server = self
            .command(&format!("{BIN}/rabbitmq-server"))
            .stdout(log.try_clone().expect("the broker's output"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("rabbitmq-server of the package rabbitmq-server");
        self.running = Some(Guarded::new(server, &self.folder()));
        self.wait_until_it_accepts();
    }

    fn wait_until_it_accepts(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        while !self.accepts() {
            let exited = self.running.as_mut().and_then(|running| running.process.try_wait().ok().flatten());
            if exited.is_some() || Instant::now() > deadline {
                let output = fs::read_to_string(self.folder().join("output")).unwrap_or_default();
                // so that the next test may launch it again
                self.running = None;
                panic!("RabbitMQ does not start (exit status {exited:?}); it says:\n{output}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it has been launched and not been killed since.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn accepts(&self) -> bool {
        [Some(self.port), self.tls_port].into_iter().flatten().all(|port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        })
    }

    /// The URL to connect to, with the vhost `/` and the user `guest`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Runs `rabbitmqctl` on it and returns what that printed. Takes about a second.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self
            .command(&format!("{BIN}/rabbitmqctl"))
            .arg("--quiet")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .expect("rabbitmqctl of the package rabbitmq-server");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?} failed:\n{printed}{failed}");
        printed
    }

    /// Whether each quorum queue would keep a majority of its members without this node.
    pub fn can_be_spared(&self) -> bool {
        let diagnostics = format!("{BIN}/rabbitmq-diagnostics");
        let check = self.command(&diagnostics).args(["--quiet", "check_if_node_is_quorum_critical"]).status();
        check.expect("rabbitmq-diagnostics of the package rabbitmq-server").success()
    }

    /// Freezes the node: its sockets stay open and nothing answers.
    pub fn sigstop(&self) {
        self.signal("STOP");
    }

    /// Unfreezes the node.
    pub fn sigcont(&self) {
        self.signal("CONT");
    }

    /// Kills the node as a power cut would. What was on disk stays for [`RabbitMq::launch`].
    pub fn kill9(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running);
            // The process that has ended is a shell. The node below it may end a moment later.
            let deadline = Instant::now() + START_DEADLINE;
            while self.accepts() {
                assert!(Instant::now() < deadline, "the broker has survived SIGKILL");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// [`RabbitMq::kill9`], and its disk is lost too.
    pub fn lose(&mut self) {
        self.kill9();
        fs::remove_dir_all(self.folder().join("mnesia")).expect("the data of the node");
    }

    /// Starts a node that was [lost](Self::lose), and makes it a member of the cluster of `other` and of its quorum
    /// queues, as operators do.
    pub fn replace(&mut self, other: &Self) {
        other.ctl(&["forget_cluster_node", &self.node]);
        self.launch();
        self.join(other);
        let queues = format!("{BIN}/rabbitmq-queues");
        let grown = other.command(&queues).args(["--quiet", "grow", &self.node, "all"]).status();
        assert!(grown.expect("rabbitmq-queues of the package rabbitmq-server").success(), "no members of queues");
    }

    /// [`RabbitMq::kill9`] and [`RabbitMq::launch`].
    pub fn restart(&mut self) {
        self.kill9();
        self.launch();
    }

    fn signal(&self, signal: &str) {
        if let Some(running) = &self.running {
            signal_group(signal, &running.process);
        }
    }

    /// The node's folder, as this process sees it. It is removed with the node.
    pub fn folder(&self) -> PathBuf {
        match &self.chroot {
            Some(root) => root.join(self.home.strip_prefix("/").unwrap_or(&self.home)),
            None => self.home.clone(),
        }
    }

    /// `program` in the node's environment; everything that RabbitMQ would look for elsewhere is set here.
    fn command(&self, program: &str) -> Command {
        let mut command = match &self.chroot {
            Some(root) => {
                let mut chroot = Command::new("chroot");
                chroot.arg(root).arg(program);
                chroot
            }
            None => Command::new(program),
        };
        let home = |name: &str| -> OsString { self.home.join(name).into() };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.home)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", home("env.conf"))
            .env("RABBITMQ_CONFIG_FILE", home("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", home("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", home("mnesia"))
            .env("RABBITMQ_LOG_BASE", home("log"))
            .env("RABBITMQ_PID_FILE", home("pid"));
        command
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill9();
        fs::remove_dir_all(self.folder()).ok();
    }
}

fn signal_group(signal: &str, leader: &Child) {
    let group = format!("-{}", leader.id());
    Command::new("kill").args(["-s", signal, "--", &group]).stderr(Stdio::null()).status().ok();
}
