//! What the process does when it is sent a signal.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is told to stop: SIGTERM, SIGINT (Ctrl-C) or SIGQUIT. From now on none of them ends it
/// otherwise, and further ones during the stop change nothing, since it takes 10 s at the most.
///
/// # Errors
/// Where the system refuses a handler.
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

/// Keeps the process alive where a signal that means nothing to it would end it.
///
/// # Errors
/// Where the system refuses a handler.
pub fn survive_others() -> io::Result<()> {
    // a file that has reached the limit of the process (`ulimit -f`) is a full disk: the write fails and says so
    let _ = signal(kind(Signal::XFSZ))?;
    for (kind, name) in [(SignalKind::user_defined1(), "SIGUSR1"), (SignalKind::user_defined2(), "SIGUSR2")] {
        let mut received = signal(kind)?;
        actix_web::rt::spawn(async move {
            while received.recv().await.is_some() {
                log::info!("{name} means nothing here; SIGHUP loads tokens and certificates again, SIGTERM stops");
            }
        });
    }
    Ok(())
}

fn kind(signal: Signal) -> SignalKind {
    SignalKind::from_raw(signal.as_raw())
}
