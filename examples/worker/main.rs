//! A render worker: fetches a message, renders its frames with Blender, and posts each one.
//!
//! It uses only the HTTP interface, and shares no code with the server.

mod fetch;
#[path = "../support/http.rs"]
#[allow(dead_code, reason = "shared with examples that use more of it")]
mod http;
mod job;
#[path = "../support/name.rs"]
#[allow(dead_code, reason = "shared with an example that uses more of it")]
mod name;
mod net;
#[path = "../support/pickle.rs"]
#[allow(dead_code, reason = "shared with an example that uses more of it")]
mod pickle;
mod render;
mod report;
mod ui;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tempfile::TempDir;
use url::Url;

use fetch::Fetch;
use http::Access;
use job::Job;
use render::{Blender, Folder};
use report::Reporter;
use ui::Ui;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Renders one message: fetches it by its UUID, renders its frames with Blender, posts each frame, and finally posts
/// that the job is complete.
///
/// The server delivers a message once. If something fails after that, the work directory is kept: run the same command
/// with `--work-dir` to continue with the fetched message.
#[derive(Parser)]
struct Args {
    /// UUID of the message
    uuid: String,

    /// Worker server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10000", value_parser = http::server_url)]
    server: Url,

    #[command(flatten)]
    access: Access,

    /// User ID of this worker
    #[arg(long, value_name = "ID", default_value = "example-worker")]
    user_id: String,

    /// Directory for the message, the .blend file, the images and Blender's logs, in a subdirectory per message
    /// [default: a temporary one, removed after success]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// Blender executable
    #[arg(long, value_name = "PATH", default_value = "blender")]
    blender: PathBuf,

    /// Run Python scripts inside the .blend file
    #[arg(long)]
    autoexec: bool,

    /// Post images from this directory instead of rendering: frame 7 is the file whose name ends in 7, such as
    /// frame_0007.png
    #[arg(long, value_name = "DIR", conflicts_with_all = ["blender", "autoexec", "render_timeout"])]
    images: Option<PathBuf>,

    /// Kill Blender if a frame takes longer than this [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    render_timeout: Option<u64>,

    /// Treat a connection as broken if it transfers nothing for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,

    /// Give up on a request, retries included, that makes no progress for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
}

enum Images {
    Blender(Blender),
    Folder(Folder),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ui = Ui::default();
    match start(&args, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.say(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, ui: &Ui) -> Result<()> {
    let images = match &args.images {
        Some(folder) => Images::Folder(Folder::open(folder)?),
        None => {
            let time_limit = args.render_timeout.map(Duration::from_secs);
            let blender = Blender { program: args.blender.clone(), autoexec: args.autoexec, time_limit };
            ui.say(blender.check()?);
            Images::Blender(blender)
        }
    };
    match &args.work_dir {
        Some(folder) => {
            let folder = folder.join(name::file_name(&args.uuid));
            fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
            work(args, ui, &images, &folder)
        }
        None => {
            let parent = tempfile::Builder::new().prefix("render-worker-").tempdir()?;
            let folder = parent.path().join(name::file_name(&args.uuid));
            fs::create_dir(&folder)?;
            let done = work(args, ui, &images, &folder);
            if done.is_err() && folder.join(MESSAGE).exists() {
                keep(parent, ui);
            }
            done
        }
    }
}

const MESSAGE: &str = "message.pickle";

fn keep(folder: TempDir, ui: &Ui) {
    let folder = folder.keep();
    ui.say(format!("the message is kept; continue with --work-dir {}", folder.display()));
}

fn work(args: &Args, ui: &Ui, images: &Images, folder: &Path) -> Result<()> {
    // Blender resolves relative paths differently.
    let folder = &fs::canonicalize(folder)?;
    let access = &args.access;
    let agent = &access.agent(&args.server, net::config(Duration::from_secs(args.timeout)), None)?;
    let patience = Duration::from_secs(args.patience);

    let message = folder.join(MESSAGE);
    let url = &fetch::address(&args.server, &args.uuid);
    Fetch { agent, access, ui, url, patience }.run(&message)?;

    let job = Job::of_message(&message)?;
    let blend = folder.join("scene.blend");
    if let Images::Blender(_) = images {
        let bytes = job.save_blend(&message, &blend)?;
        ui.say(format!("{} of {bytes} bytes, frames {:?}", blend.display(), job.frames));
    }

    let reporter = Reporter { agent, access, ui, server: &args.server, user_id: &args.user_id, patience };
    let bar = ui.frames(job.frames.len());
    for &frame in &job.frames {
        bar.set_message(format!("frame {frame}"));
        let path = match images {
            Images::Blender(blender) => blender.render(&blend, folder, frame)?,
            Images::Folder(folder) => folder.image(frame)?,
        };
        let image = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        reporter.frame_rendered(&args.uuid, frame, &file_name, &image)?;
        bar.inc(1);
        ui.say(format!("frame {frame}: {} bytes posted", image.len()));
    }
    reporter.render_completed(&args.uuid, &job.frames)?;
    bar.finish_and_clear();
    ui.say(format!("completed: {} frames", job.frames.len()));
    Ok(())
}
