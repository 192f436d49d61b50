//! Reports the state of the service to the service manager that has started it, as `sd_notify(3)` describes it. Without
//! `NOTIFY_SOCKET` in the environment, there is none, and nothing is reported.

use std::env;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use user_http_actors::ActorsState;
use user_http_actors::messages::BrokerState;
use user_http_server::Pulse;

/// How often the status is reported if no watchdog asks for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How often the watchdog is fed within its limit. One late answer does not end the service.
const FEEDS_PER_LIMIT: u32 = 3;

/// How long a report may take. A service manager that does not read must not stop the service.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager. Clones are the same.
#[derive(Clone, Debug)]
pub struct ServiceManager {
    /// Whether there is one that wants reports.
    listens: bool,
    /// Without a sign of life for this long, it kills the process.
    watchdog: Option<Duration>,
    /// Whether it knows that the service is ready.
    is_ready: Arc<AtomicBool>,
    is_stopping: Arc<AtomicBool>,
}

impl ServiceManager {
    /// The one that the environment names.
    pub fn of_environment() -> Self {
        let listens = env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| listens && !limit.is_zero());
        Self { listens, watchdog, is_ready: Arc::default(), is_stopping: Arc::default() }
    }

    /// Reports that the service is ready, once it is. Then reports its status, and feeds the watchdog while every actor
    /// and every thread of the servers answers, until the actors stop.
    pub async fn watch(self, pulse: Pulse) {
        if !self.listens || pulse.check().await.is_err() {
            return;
        }
        self.report(|| sd_notify::notify(&[NotifyState::Ready])).await;
        self.is_ready.store(true, Ordering::Relaxed);
        let interval = self.watchdog.map_or(STATUS_INTERVAL, |limit| limit / FEEDS_PER_LIMIT);
        let mut reported = String::new();
        loop {
            match tokio::time::timeout(interval, pulse.check()).await {
                Ok(Ok(state)) => {
                    let (status, is_fed) = (status(&state), self.watchdog.is_some());
                    let is_new = status != reported && !self.is_stopping.load(Ordering::Relaxed);
                    reported.clone_from(&status);
                    self.report(move || {
                        let status = is_new.then_some(NotifyState::Status(&status));
                        let states: Vec<_> =
                            is_fed.then_some(NotifyState::Watchdog).into_iter().chain(status).collect();
                        if states.is_empty() { Ok(()) } else { sd_notify::notify(&states) }
                    })
                    .await;
                }
                // the actors have stopped
                Ok(Err(_)) => return,
                Err(_) => log::error!("the gateway does not react, so the watchdog gets no sign of life"),
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// Runs a reload between the reports that it has begun and ended. The end is reported as `READY=1`, so a reload
    /// during the start is not reported.
    pub async fn reloading(&self, reload: impl Future<Output = ()>) {
        if !self.is_ready.load(Ordering::Relaxed) {
            return reload.await;
        }
        let begin = || sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]);
        self.report(begin).await;
        reload.await;
        self.report(|| sd_notify::notify(&[NotifyState::Ready])).await;
    }

    /// Reports that the service is stopping.
    pub async fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let status = NotifyState::Status("stopping: requests in progress are finished");
        self.report(move || sd_notify::notify(&[NotifyState::Stopping, status])).await;
    }

    /// Sends a report on a thread where it may block.
    async fn report(&self, send: impl FnOnce() -> io::Result<()> + Send + 'static) {
        if !self.listens {
            return;
        }
        match tokio::time::timeout(REPORT_TIMEOUT, actix_web::rt::task::spawn_blocking(send)).await {
            Ok(Ok(Err(error))) => log::warn!("cannot report to the service manager: {error}"),
            // The panic hook logs a panic.
            Ok(Ok(Ok(())) | Err(_)) => {}
            Err(_) => log::warn!("the service manager does not read reports"),
        }
    }
}

/// The line that a service manager shows.
fn status(state: &ActorsState) -> String {
    let ActorsState { buffer, outbox, .. } = state;
    let mut status = format!("{} messages for workers, {} for the user manager", buffer.messages, outbox.messages);
    let broker = match outbox.broker {
        BrokerState::None => return status,
        BrokerState::Connected => "connected",
        BrokerState::Disconnected => "disconnected",
        BrokerState::Blocked => "blocked",
    };
    // writing to a string never fails
    let _ = write!(status, "; broker {broker}");
    status
}
