//! Blender, if it is installed.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How long Blender may take to make the scene, and to render it. It takes a second or two.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What makes the scene.
const SCENE: &str = include_str!("scene.py");

pub struct Blender(PathBuf);

impl Blender {
    /// The first `blender` in `PATH`.
    pub fn find() -> Option<Self> {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|folder| folder.join("blender")).find(|file| file.is_file()).map(Self)
    }

    /// Makes a scene and saves it.
    pub fn make_scene(&self, folder: &Path, blend: &Path, is_stopping: &AtomicBool) -> Result<(), String> {
        let script = folder.join("scene.py");
        fs::write(&script, SCENE).map_err(|error| format!("cannot write {}: {error}", script.display()))?;
        let mut command = Command::new(&self.0);
        command.args(["--background", "--factory-startup", "--python-exit-code", "1", "--python"]);
        command.arg(&script).arg("--").arg(blend);
        run(command, folder, is_stopping)?;
        if blend.is_file() { Ok(()) } else { Err("Blender has made no scene".to_owned()) }
    }

    /// Renders the first frame, and returns the image.
    pub fn render(&self, folder: &Path, blend: &Path, is_stopping: &AtomicBool) -> Result<Vec<u8>, String> {
        let mut command = Command::new(&self.0);
        command.arg("--background").arg("--factory-startup").arg(blend).arg("--disable-autoexec");
        command.arg("--render-output").arg(folder.join("rendered_####"));
        command.args(["--render-format", "PNG", "--use-extension", "1", "--render-frame", "1"]);
        run(command, folder, is_stopping)?;
        fs::read(folder.join("rendered_0001.png")).map_err(|error| format!("Blender has rendered no image: {error}"))
    }
}

/// Runs Blender to its end, or until the demo stops. All that it writes goes into the folder.
fn run(mut command: Command, folder: &Path, is_stopping: &AtomicBool) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot run Blender: {error}");
    let log = File::create(folder.join("blender.log")).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    // A group of its own, because `blender` may be a script that starts the program.
    let mut child = command.env("TMPDIR", folder).process_group(0).spawn().map_err(failed)?;
    let start = Instant::now();
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("Blender has failed ({status})")),
            None if is_stopping.load(Ordering::Relaxed) => {
                kill(child);
                return Err("the demo was interrupted".to_owned());
            }
            None if start.elapsed() > TIME_LIMIT => {
                kill(child);
                return Err(format!("Blender has taken longer than {} s", TIME_LIMIT.as_secs()));
            }
            None => thread::sleep(POLL),
        }
    }
}

fn kill(mut child: Child) {
    // These fail only if it has ended.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}
