//! The systemd units, the shipped configuration file, the Debian package and the container image. A script in
//! `tests/package` checks each.

use std::process::Command;

use crate::harness::outside_cargo;

#[track_caller]
fn run(script: &str) {
    let mut command = Command::new(format!("{}/tests/package/{script}", env!("CARGO_MANIFEST_DIR")));
    command.arg(env!("CARGO_BIN_EXE_user-http-server"));
    let ended = outside_cargo(&mut command).output().expect("bash");
    let [stdout, stderr] = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(ended.status.success(), "{script}: {}\n{stdout}{stderr}", ended.status);
    println!("{stdout}");
}

#[test]
fn systemd_understands_the_units_and_their_exposure_is_at_most_2() {
    run("units.sh");
}

#[test]
fn the_shipped_configuration_file_has_each_setting_with_its_default() {
    run("settings.sh");
}

#[test]
fn the_debian_package_is_reproducible_and_keeps_configuration_and_messages_until_it_is_purged() {
    run("debian.sh");
}

#[test]
fn the_container_image_runs_with_a_read_only_root_as_a_user_with_a_number() {
    run("container.sh");
}
