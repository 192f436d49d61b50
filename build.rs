//! Finds out which revision is built, for the metric `build_info`.

use std::env;
use std::path::Path;
use std::process::Command;

/// Whoever builds without git (a distribution, a container image) names the revision in this variable.
const VARIABLE: &str = "BUILD_REVISION";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let named = env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    let revision = named.or_else(revision_of_checkout).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={revision}");
}

/// The commit that is checked out here; `None` for a tarball, even one that is unpacked within another repository.
fn revision_of_checkout() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    for of in ["HEAD", &git(&["symbolic-ref", "--quiet", "HEAD"]).unwrap_or_else(|| "HEAD".to_owned())] {
        // a file that is not there would make every build run this again
        if let Some(path) = git(&["rev-parse", "--git-path", of]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
