//! What a server is started with: its folders, arguments and environment.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use tempfile::TempDir;

use super::process::Process;
use super::program::without_settings;
use super::server::Server;
use super::{SOON, example};

/// The path of another build of the program: each restart of a server changes between the two.
const OTHER_PROGRAM: &str = "TEST_OTHER_PROGRAM";

/// What the gateway runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The program itself.
    Server,
    /// The example of an application that mounts the routes.
    Embedded,
}

/// The folders, arguments and environment of a server.
pub struct Setup {
    host: Host,
    dir: TempDir,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    config: String,
    wrapper: Vec<String>,
    /// The first two descriptors of the wrapper, or of the server; /dev/null if there are fewer.
    descriptors: Vec<OwnedFd>,
    default_blend_root: bool,
    /// The program that runs.
    program: PathBuf,
    /// The one that runs after a restart.
    next_program: PathBuf,
}

impl Default for Setup {
    fn default() -> Self {
        let dir = tempfile::Builder::new().prefix("uhs-").tempdir().expect("a folder for the test");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_user-http-server"));
        let other = std::env::var_os(OTHER_PROGRAM).map(|path| {
            fs::canonicalize(&path).unwrap_or_else(|error| panic!("{OTHER_PROGRAM}={}: {error}", path.display()))
        });
        let setup = Self {
            host: Host::Server,
            dir,
            args: Vec::new(),
            env: BTreeMap::new(),
            config: String::new(),
            wrapper: Vec::new(),
            descriptors: Vec::new(),
            default_blend_root: false,
            next_program: other.unwrap_or_else(|| program.clone()),
            program,
        };
        fs::create_dir(setup.blend_root()).expect("a blend root");
        setup
    }
}

impl Setup {
    /// The data directory is on a disk of its own, of 48 MiB, that ends with the process.
    pub fn on_a_small_disk() -> Self {
        let setup = Self::default();
        let disk = setup.path("disk");
        fs::create_dir(&disk).expect("a mount point");
        let mount = format!("mount -t tmpfs -o size=48m none {} && exec \"$@\"", disk.display());
        let data_dir = disk.join("data");
        setup
            .wrapper(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
            .args(["--data-dir", data_dir.to_str().expect("UTF-8")])
    }

    /// Runs in this host.
    pub fn on(host: Host) -> Self {
        Self { host, ..Self::default() }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<str>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Writes a configuration file and names it on the command line.
    pub fn config(mut self, text: &str) -> Self {
        self.config = text.to_owned();
        let path = self.path("config.toml");
        fs::write(&path, text).expect("a configuration file");
        self.args(["--config", path.to_str().expect("UTF-8")])
    }

    /// Runs the server through another command, which must finally execute its arguments.
    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Passes open files, at most two, as stdin and stdout.
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        assert!(descriptors.len() <= 2, "stdin and stdout");
        self.descriptors = descriptors;
        self
    }

    /// Passes no `--blend-root`, so that the server uses its default.
    pub fn default_blend_root(mut self) -> Self {
        self.default_blend_root = true;
        self
    }

    /// A path in the test's own folder, which is the server's working directory too.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The first blend root.
    pub fn blend_root(&self) -> PathBuf {
        self.path("blend")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        let mut server = self.launch();
        server.wait_until_ready();
        server
    }

    /// Starts a server that must refuse to run; returns its exit status and log.
    pub fn start_refused(self) -> (ExitStatus, String) {
        let mut server = self.launch();
        let status = server.wait_for_exit(SOON);
        (status, server.log())
    }

    /// Starts a server without waiting, for one whose log does not show its addresses.
    pub fn launch(self) -> Server {
        Server::launch(self)
    }

    /// What it runs in.
    pub fn host(&self) -> Host {
        self.host
    }

    /// The next start runs the other program, if there is one.
    pub fn change_program(&mut self) {
        std::mem::swap(&mut self.program, &mut self.next_program);
    }

    /// Starts the process.
    pub fn spawn(&self) -> Process {
        let mut passed = self.descriptors.iter().map(|fd| Stdio::from(fd.try_clone().expect("a descriptor")));
        let [stdin, stdout] = [(); 2].map(|()| passed.next().unwrap_or_else(Stdio::null));
        Process::spawn(self.command().stdin(stdin).stdout(stdout))
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        if self.host == Host::Embedded {
            let mut command = example("embedded");
            command.args(["--bind", "127.0.0.1:0", "--data-dir"]).arg(self.data_dir());
            command.arg("--blend-root").arg(self.blend_root()).args(&self.args).current_dir(self.dir.path());
            return command;
        }
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&self.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        without_settings(&mut command);
        // A test may set each of these itself: as an argument, in the environment or in the file.
        for (flag, value) in [
            ("--http-bind", "127.0.0.1:0"),
            ("--api-bind", "127.0.0.1:0"),
            ("--data-dir", self.data_dir().to_str().expect("UTF-8")),
            ("--blend-root", self.blend_root().to_str().expect("UTF-8")),
            // longer than a busy machine keeps a test from its next request
            ("--keep-alive", "10m"),
        ] {
            let variable = format!("USER_HTTP_SERVER_{}", flag[2..].replace('-', "_").to_uppercase());
            let given = self.args.iter().any(|arg| arg.split('=').next() == Some(flag))
                || self.env.contains_key(&variable)
                || self.config.lines().any(|line| line.starts_with(&flag[2..]))
                || self.default_blend_root && flag == "--blend-root";
            if !given {
                command.args([flag, value]);
            }
        }
        command.args(&self.args).envs(&self.env).current_dir(self.dir.path());
        command
    }
}

/// Makes a test with the server and one with the embedded gateway of each function, which takes the [`Host`].
macro_rules! for_each_host {
    ($($test:ident),* $(,)?) => {
        crate::harness::tests_with!(in_the_server, crate::harness::Host::Server, $($test),*);
        crate::harness::tests_with!(embedded, crate::harness::Host::Embedded, $($test),*);
    };
}
pub(crate) use for_each_host;

/// The start of a [`Setup::wrapper`] that mounts file systems, visible to the server alone.
pub fn new_mount_namespace() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--map-root-user", "--mount"]
    }
}
