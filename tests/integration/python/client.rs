//! The Python client (`clients/python`): its own tests, against this server, on every Python of the machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::python;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs some of its tests.
#[track_caller]
fn run(python: &Path, packages: Option<&Path>, args: &[&str]) {
    let mut command = Command::new(python);
    if packages.is_some() {
        command.env("TEST_BRIEF", "1");
    }
    command.args(["-B", "-m", "pytest", "--quiet", "-rs"]).args(args).current_dir(root().join("clients/python"));
    command.env("USER_HTTP_SERVER", env!("CARGO_BIN_EXE_user-http-server"));
    command.env("PYTHONPATH", packages.map_or_else(OsString::new, OsString::from));
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    let ended = command.output().unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    let printed = String::from_utf8_lossy(&ended.stdout);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {}\n{printed}\n{errors}", python.display(), ended.status);
    assert!(printed.contains(" passed") && !printed.contains("SKIPPED"), "{printed}");
}

/// Makes a test of each file of its tests.
macro_rules! files {
    ($($file:ident),*) => {
        $(#[test]
        fn $file() {
            run(&python(), None, &[concat!("tests/test_", stringify!($file), ".py")]);
        })*

        #[test]
        fn every_file_of_its_tests_is_run() {
            let mut named: Vec<String> = [$(stringify!($file)),*].map(|name| format!("test_{name}.py")).into();
            named.sort();
            let folder = root().join("clients/python/tests").read_dir().expect("a folder");
            let names = folder.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
            let mut found: Vec<String> = names.filter(|name| name.starts_with("test_")).collect();
            found.sort();
            assert_eq!(named, found);
        }
    };
}

files!(cache, command, fetching, package, pickles, posting, spool);

/// The Pythons that `tests/support/pythons.sh` finds, and their folders of packages.
fn others() -> Vec<(PathBuf, PathBuf)> {
    let version = "import sys; print('%d.%d' % sys.version_info[:2])";
    let own = Command::new(python()).args(["-c", version]).output().expect("a Python").stdout;
    let script = "source tests/support/pythons.sh; other_pythons \"$1\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", String::from_utf8_lossy(&own).trim()]).current_dir(root());
    let found = command.output().expect("bash");
    assert!(found.status.success(), "{found:?}");
    let lines = String::from_utf8(found.stdout).expect("UTF-8");
    let folders = root().join("tests/.venv/pythons");
    let pythons = lines.lines().map(|line| line.split_once(' ').expect("a version and a path"));
    pythons.map(|(version, python)| (python.into(), folders.join(version))).collect()
}

#[test]
fn it_works_on_every_other_python() {
    for (python, packages) in others() {
        assert!(
            packages.join("requirements.txt").exists(),
            "no packages for {} in {}: run ./tests/run once, it installs what the tests need",
            python.display(),
            packages.display()
        );
        run(&python, Some(&packages), &["-m", "not tools and not heavy"]);
    }
}
