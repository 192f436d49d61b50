//! The sources of images: Blender, or a directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// How many lines of Blender's output a failure shows.
const TAIL_LINES: usize = 20;

/// How often Blender is polled if it has a time limit. A render takes seconds at least.
const POLL: Duration = Duration::from_millis(100);

pub struct Blender {
    pub program: PathBuf,
    pub autoexec: bool,
    pub time_limit: Option<Duration>,
}

impl Blender {
    /// Asks Blender for its version. A message is delivered once, so a worker must know that it can render before it
    /// fetches.
    pub fn check(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!(
                "no Blender at {}: install it (on Debian, apt-get install blender), or give --blender PATH or --images \
                 DIR",
                self.program.display()
            ),
            _ => format!("cannot run {}: {error}", self.program.display()),
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().find(|line| line.starts_with("Blender")) {
            Some(version) => Ok(version.to_owned()),
            None => {
                Err(format!("{} is not Blender: its --version prints no version of Blender", self.program.display())
                    .into())
            }
        }
    }

    /// Renders one frame into `folder`; an image of an earlier run is used again. Blender's output goes into a log file
    /// there.
    pub fn render(&self, blend: &Path, folder: &Path, frame: u32) -> Result<PathBuf> {
        let image = folder.join(format!("frame_{frame:04}.png"));
        if image.exists() {
            return Ok(image);
        }
        // The image has its final name only when it is complete. Blender may succeed without writing one; then one of
        // an interrupted run must not be posted.
        let rendered = folder.join(format!("rendering_{frame:04}.png"));
        match fs::remove_file(&rendered) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let log = folder.join(format!("frame_{frame:04}.log"));
        let output = File::create(&log)?;
        let mut child = Command::new(&self.program)
            .arg("--background")
            .arg(if self.autoexec { "--enable-autoexec" } else { "--disable-autoexec" })
            .arg(blend)
            .arg("--render-output")
            .arg(folder.join("rendering_####"))
            .args(["--render-format", "PNG", "--use-extension", "1", "--render-frame", &frame.to_string()])
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", self.program.display()))?;
        let started = Instant::now();
        let status = loop {
            match self.time_limit {
                None => break child.wait()?,
                Some(limit) if started.elapsed() > limit => {
                    child.kill()?;
                    child.wait()?;
                    return Err(failure(frame, &format!("took longer than {} s", limit.as_secs()), &log));
                }
                Some(_) => match child.try_wait()? {
                    Some(status) => break status,
                    None => thread::sleep(POLL),
                },
            }
        };
        if !status.success() {
            return Err(failure(frame, &ended(status), &log));
        }
        if !rendered.exists() {
            return Err(failure(frame, "wrote no image", &log));
        }
        File::open(&rendered)?.sync_all()?;
        fs::rename(&rendered, &image)?;
        Ok(image)
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exited with {code}"),
        None => format!("was killed: {status}"),
    }
}

fn failure(frame: u32, what: &str, log: &Path) -> Box<dyn std::error::Error> {
    let output = fs::read(log).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    let lines: Vec<_> = output.lines().collect();
    let tail: String =
        lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|line| format!("\n  | {line}")).collect();
    format!("frame {frame}: Blender {what}; the end of {}:{tail}", log.display()).into()
}

/// Existing images, by the number at the end of their names: `frame_0007.png` and `7.png` are frame 7.
pub struct Folder {
    path: PathBuf,
    images: BTreeMap<u32, PathBuf>,
}

impl Folder {
    pub fn open(path: &Path) -> Result<Self> {
        let entries = fs::read_dir(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let images = paths.into_iter().filter(|path| path.is_file()).filter_map(|path| Some((number(&path)?, path)));
        Ok(Self { path: path.to_owned(), images: images.collect() })
    }

    pub fn image(&self, frame: u32) -> Result<PathBuf> {
        match self.images.get(&frame) {
            Some(image) => Ok(image.clone()),
            None => Err(format!("no image for frame {frame} in {}", self.path.display()).into()),
        }
    }
}

fn number(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    stem[stem.len() - digits..].parse().ok()
}
