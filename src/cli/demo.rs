//! `user-http-server demo`: a render farm of one frame, from a gateway that runs in this process for as long as the
//! demo lasts.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::{Arg, ArgAction, Command, value_parser};
use log::LevelFilter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use user_http_server::{Config, Listeners, UserHttpServer};

use crate::cli::text::line;
use crate::cli::{Failure, Invocation};
use crate::process::{limits, signals};

mod blender;
mod farm;

use blender::Blender;
use farm::Farm;

/// How many names are tried for the frame.
const MAX_NAMES: u32 = 1_000;

pub fn command() -> Command {
    Command::new("demo")
        .about("Render one frame with a gateway, a worker and a user manager in a temporary folder")
        .long_about(
            "Start a gateway in a temporary folder, leave a message with a .blend file in it, and be the worker that \
             renders one frame and the user manager that receives it. Blender renders if it is installed; otherwise a \
             built-in picture is the frame. Settings, files and servers that are there already are not touched.\n\n\
             On a terminal the gateway then goes on until Ctrl-C, so that its status page can be looked at.",
        )
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .help("Keep the gateway running until Ctrl-C, even if standard output is no terminal"),
        )
        .arg(
            Arg::new("no-blender")
                .long("no-blender")
                .action(ArgAction::SetTrue)
                .help("Use the built-in picture even if Blender is installed"),
        )
        .arg(Arg::new("frame").long("frame").value_name("FILE").value_parser(value_parser!(PathBuf)).help(
            "Where to save the frame; the file must not exist\n\
             [default: demo-frame.png in this folder, or the next free name demo-frame-2.png]",
        ))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    invocation.end(demonstrate(invocation))
}

fn demonstrate(invocation: &Invocation<'_>) -> Result<(), Failure> {
    let args = invocation.args;
    // The steps say what happens. Otherwise RUST_LOG decides.
    let is_filtered = std::env::var_os("RUST_LOG").is_some();
    log::set_max_level(if is_filtered { LevelFilter::Trace } else { LevelFilter::Warn });
    limits::check_threads().map_err(|error| Failure::Failed(error.to_string()))?;
    limits::raise_file_limit();
    let frame_file = args.get_one::<PathBuf>("frame").cloned();
    if let Some(file) = frame_file.as_ref().filter(|file| file.exists()) {
        return Err(Failure::Usage(format!("--frame {}: the file exists; give another name", file.display())));
    }
    let folder = tempfile::Builder::new()
        .prefix("user-http-server-demo-")
        .tempdir()
        .map_err(|error| Failure::Failed(format!("cannot create a temporary folder: {error}; set TMPDIR")))?;
    let blender = match args.get_flag("no-blender") {
        true => Err("Blender is not used"),
        false => Blender::find().ok_or("Blender is not installed"),
    };
    let keep = args.get_flag("keep") || io::stdout().is_terminal();
    let ended = serve(folder.path(), blender, frame_file, keep).map_err(Failure::Failed);
    let path = folder.path().to_owned();
    let removed = folder.close();
    ended?;
    removed.map_err(|error| Failure::Failed(format!("cannot remove {}: {error}", path.display())))
}

/// Runs the gateway while another thread takes the steps, and then until a signal if it is to be kept.
fn serve(
    folder: &Path,
    blender: Result<Blender, &'static str>,
    frame_file: Option<PathBuf>,
    keep: bool,
) -> Result<(), String> {
    let blends = folder.join("blends");
    fs::create_dir(&blends).map_err(|error| format!("cannot create {}: {error}", blends.display()))?;
    let config = config(folder, &blends)?;
    let listeners = Listeners::bind(&config)?;
    let address = |listener: &std::net::TcpListener| listener.local_addr().map_err(|error| error.to_string());
    let is_stopping = Arc::new(AtomicBool::new(false));
    let farm = Farm {
        workers: format!("http://{}", address(&listeners.http)?),
        services: format!("http://{}", address(&listeners.api)?),
        folder: folder.to_owned(),
        blends,
        blender,
        is_stopping: Arc::clone(&is_stopping),
    };
    let page = format!("{}/", farm.services);
    let take_steps = move || {
        let image = farm.render_one_frame()?;
        let path = save(&image, frame_file.as_deref())?;
        say("");
        say(&format!("The frame is in {}", path.display()));
        Ok(())
    };

    let system = actix_web::rt::System::new();
    system.block_on(async {
        let stop = signals::stop().map_err(|error| error.to_string())?;
        let mut hangup = signal(SignalKind::hangup()).map_err(|error| error.to_string())?;
        let (outcome, mut taken) = oneshot::channel::<Result<(), String>>();
        // Fails only if nobody waits any more.
        let steps = thread::Builder::new().name("demo".to_owned()).spawn(move || drop(outcome.send(take_steps())));
        let steps = steps.map_err(|error| format!("cannot start a thread: {error}"))?;
        let mut ended = Err("the demo was interrupted".to_owned());
        let shutdown = async {
            let stop = async {
                tokio::select! {
                    () = stop => {}
                    _ = hangup.recv() => {}
                }
            };
            tokio::pin!(stop);
            tokio::select! {
                () = &mut stop => {}
                result = &mut taken => {
                    ended = result.unwrap_or_else(|_| Err("a step of the demo has failed; see the log".to_owned()));
                    if keep && ended.is_ok() {
                        say(&format!("The gateway goes on. Open {page} and end it with Ctrl-C."));
                        stop.await;
                    }
                }
            }
            is_stopping.store(true, Ordering::Relaxed);
        };
        let served = UserHttpServer::start_service(config, listeners, shutdown).await;
        is_stopping.store(true, Ordering::Relaxed);
        // A panic in it is the outcome above already.
        let _ = steps.join();
        served.map_err(|error| error.to_string())?;
        ended
    })
}

fn config(folder: &Path, blends: &Path) -> Result<Config, String> {
    let [http, api] = ["--http-bind", "--api-bind"].map(Into::into);
    let any_port = || "127.0.0.1:0".into();
    let args = [
        "demo".into(),
        http,
        any_port(),
        api,
        any_port(),
        "--max-connections".into(),
        "100".into(),
        "--data-dir".into(),
        folder.join("data").into(),
        "--blend-root".into(),
        blends.into(),
    ];
    // without the environment, which may describe a gateway that is in use
    Config::load(args, []).map_err(|error| error.to_string())
}

/// Saves the frame under a name that is free.
fn save(image: &[u8], file: Option<&Path>) -> Result<PathBuf, String> {
    let write = |path: &Path| {
        let mut file = File::create_new(path)?;
        // half a picture is none
        file.write_all(image).inspect_err(|_| drop(fs::remove_file(path)))
    };
    if let Some(path) = file {
        return match write(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(error) => Err(format!("cannot save the frame in {}: {error}", path.display())),
        };
    }
    // such as /, in a container
    let folders = [PathBuf::from("."), std::env::temp_dir()];
    let mut failure = String::new();
    for folder in folders.iter().filter_map(|folder| std::path::absolute(folder).ok()) {
        for number in 1..=MAX_NAMES {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = folder.join(format!("demo-frame{suffix}.png"));
            match write(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    failure = format!("{}: {error}", path.display());
                    break;
                }
            }
        }
    }
    Err(format!("cannot save the frame: {failure}; give a name with --frame"))
}

/// Prints a line; what the text has from elsewhere, such as the name of a folder, cannot make it more. A reader that is
/// gone stops nothing.
fn say(text: &str) {
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{}", line(text)).and_then(|()| output.flush());
}
