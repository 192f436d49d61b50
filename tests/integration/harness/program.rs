//! A program that a test starts and that ends by itself, such as an example.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::eventually;

/// Longer than any program takes, and shorter than the `--patience` that tests give to examples.
const END: Duration = Duration::from_secs(120);

/// A running program, killed when dropped.
pub struct Program {
    child: Child,
    /// stdout and stderr.
    output: [NamedTempFile; 2],
}

/// How a program has ended, and its output.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        // Files, because a pipe that nobody reads fills up.
        let output = [(); 2].map(|()| NamedTempFile::new().expect("a file"));
        let [stdout, stderr] = output.each_ref().map(|file| file.reopen().expect("a file"));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, output }
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        eventually("the program's end", END, || self.try_end().ok_or_else(|| self.output.each_ref().map(text)))
    }

    /// How it has ended; `None` while it runs.
    pub fn try_end(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().expect("a child's status")?;
        let [stdout, stderr] = self.output.each_ref().map(text);
        Some(Ended { code: status.code(), stdout, stderr })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // This fails only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(file: &NamedTempFile) -> String {
    String::from_utf8_lossy(&fs::read(file).expect("the output of the program")).into_owned()
}

/// The program under test, without settings from the environment of the tests.
pub fn gateway(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_user-http-server"));
    without_settings(&mut command).args(args);
    command
}

/// Removes the variables that the program reads.
pub fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("USER_HTTP_SERVER_") || text.starts_with("RUST_LOG") {
            command.env_remove(&name);
        }
    }
    command
}

/// Removes the variables that cargo sets for tests, because a nested cargo would rebuild dependencies that read them.
pub fn outside_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].iter().any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// A Rust example, built first: `cargo test --test integration` does not build examples.
pub fn example(name: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_user-http-server")).parent().expect("a profile's folder");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{}", folder.display()),
        };
        let target = folder.parent().expect("the target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--examples", "--profile", profile, "--target-dir"]).arg(target);
        let built = outside_cargo(&mut cargo).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        folder.join("examples")
    });
    Command::new(folder.join(name))
}
