//! A real render: `examples/render_farm.sh` makes a scene, leaves it, renders it with Blender, and checks the frames.

use std::path::Path;
use std::process::Command;

use crate::harness::{Broker, Version, outside_cargo};

/// Runs a command of the documentation.
#[track_caller]
fn render(command: &str) {
    let mut words = command.split_whitespace();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venv = root.join("tests/.venv/bin");
    let path = format!("{}:{}", venv.display(), std::env::var("PATH").expect("PATH"));
    let mut script = Command::new(root.join(words.next().expect("a program")));
    let output = outside_cargo(&mut script).args(words).env("PATH", path).output().expect("the script");
    let printed = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
    assert!(output.status.success() && printed.contains("PASS"), "{command}: {}\n{printed}", output.status);
}

#[test]
fn two_frames_are_rendered_and_arrive_without_a_broker() {
    render("examples/render_farm.sh");
}

#[test]
fn two_frames_are_rendered_by_the_python_worker_and_arrive_without_a_broker() {
    render("examples/render_farm.sh --worker python");
}

/// This test needs RabbitMQ too.
mod rabbitmq {
    use super::*;

    #[test]
    fn two_frames_are_rendered_and_arrive_over_rabbitmq() {
        let broker = Broker::of(Version::Debian);
        render(&format!("examples/render_farm.sh --amqp-url {}", broker.url));
    }
}
