//! A render worker: fetches a message, renders its frames with Blender, and posts each one.
//!
//! It uses only the HTTP interface, and shares no code with the server.

mod cache;
mod digest;
mod download;
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

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use tempfile::TempDir;
use url::Url;

use cache::{Cache, Cached};
use fetch::Fetch;
use http::Access;
use job::Job;
use net::Client;
use render::{Blender, Folder};
use report::Reporter;
use ui::Ui;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Renders one message: fetches it by its UUID, renders its frames with Blender, posts each frame, and finally posts
/// that the job is complete.
///
/// A .blend file is downloaded once, into a folder that all workers of this machine share, and used from there.
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

    /// Folder for .blend files, shared by the workers of a machine [default: render-worker in $XDG_CACHE_HOME or
    /// ~/.cache]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Size of that folder: the least recently used files are deleted, but none in use
    #[arg(long, value_name = "SIZE", default_value = "64GiB")]
    cache_size: ByteSize,

    /// Ask for messages with the .blend file in them, and do not keep it
    #[arg(long, conflicts_with_all = ["cache_dir", "cache_size"])]
    no_cache: bool,

    /// Wait so long for a message that is not there yet
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,

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

/// How often a message is fetched that is replaced meanwhile.
const TRIES: u32 = 5;

fn keep(folder: TempDir, ui: &Ui) {
    let folder = folder.keep();
    ui.say(format!("the message is kept; continue with --work-dir {}", folder.display()));
}

fn work(args: &Args, ui: &Ui, images: &Images, folder: &Path) -> Result<()> {
    // Blender resolves relative paths differently.
    let folder = &fs::canonicalize(folder)?;
    let access = &args.access;
    let timeout = Duration::from_secs(args.timeout);
    let agent = &access.agent(&args.server, net::config(timeout), None)?;
    let client = &Client { agent, access, ui, patience: Duration::from_secs(args.patience) };

    let message = folder.join(MESSAGE);
    let scene = folder.join("scene.blend");
    let (job, cached) = fetch(args, client, folder, &message)?;
    if let Images::Blender(_) = images {
        match &cached {
            Some(file) => file.link(&scene)?,
            None => drop(job.save_blend(&message, &scene)?),
        }
        ui.say(format!("{}, frames {:?}", scene.display(), job.frames));
    }

    let message = digest::of_file(&message, |_| {})?;
    let reporter = Reporter { client, server: &args.server, user_id: &args.user_id, message };
    let bar = ui.frames(job.frames.len());
    for &frame in &job.frames {
        bar.set_message(format!("frame {frame}"));
        let path = match images {
            Images::Blender(blender) => blender.render(&scene, folder, frame)?,
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

/// The job, and its .blend file if that is in the cache.
fn fetch(args: &Args, client: &Client, folder: &Path, message: &Path) -> Result<(Job, Option<Cached>)> {
    let url = fetch::address(&args.server, &args.uuid);
    let (wait, max_wait) = (Duration::from_secs(args.wait), Duration::from_secs(args.timeout / 2));
    let fetch = Fetch { client, url, by_reference: !args.no_cache, wait, max_wait };
    for _ in 0..TRIES {
        let kept = fetch.run(message)?;
        let job = Job::of_message(message)?;
        let Some(reference) = job.reference() else { return Ok((job, None)) };
        let cache = Cache { folder: cache_folder(args, client.ui, folder), limit: args.cache_size.as_u64() };
        match cache.get(client, &args.server, reference)? {
            Ok(file) => {
                if fetch.take(message, kept)? {
                    return Ok((job, Some(file)));
                }
                client.ui.say("the message has been replaced; fetching the new one");
            }
            Err(refused) => {
                client.ui.say(format!("{refused}; fetching the message with the file in it"));
                fetch.with_blend_file(message)?;
            }
        }
    }
    Err("the message was replaced each time it was fetched".into())
}

/// The folder that is shared, or, where there is none that can be written to, the job's own.
fn cache_folder(args: &Args, ui: &Ui, folder: &Path) -> PathBuf {
    if let Some(chosen) = &args.cache_dir {
        return chosen.clone();
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let shared = user.map(|user| user.join("render-worker"));
    let is_usable = |shared: &PathBuf| fs::create_dir_all(shared).and_then(|()| tempfile::tempfile_in(shared)).is_ok();
    shared.filter(is_usable).unwrap_or_else(|| {
        ui.say("no folder for .blend files that other workers can use: choose one with --cache-dir DIR");
        folder.join("cache")
    })
}
