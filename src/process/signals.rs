//! Signal handling.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves at the first SIGTERM, SIGINT (Ctrl-C) or SIGQUIT. From the call on, these signals no longer kill the
/// process. Further ones during the shutdown, which takes at most 10 s (15 s if the sockets are handed over), are
/// ignored.
///
/// # Errors
/// The system refuses a handler.
pub fn stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    })
}

/// Handles signals that have no meaning here but would kill the process.
///
/// # Errors
/// The system refuses a handler.
pub fn survive_others() -> io::Result<()> {
    for (kind, name) in [(SignalKind::user_defined1(), "SIGUSR1"), (SignalKind::user_defined2(), "SIGUSR2")] {
        let mut received = signal(kind)?;
        actix_web::rt::spawn(async move {
            while received.recv().await.is_some() {
                log::info!("{name} has no meaning here; SIGHUP reloads tokens and certificates, SIGTERM stops");
            }
        });
    }
    Ok(())
}

/// From the call on, a write beyond the file size limit (`ulimit -f`) is an error, which is handled as a full disk. It
/// would kill the process otherwise.
///
/// # Errors
/// The system refuses a handler.
pub fn survive_the_file_size_limit() -> io::Result<()> {
    // The handler needs the runtime only for its installation.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
