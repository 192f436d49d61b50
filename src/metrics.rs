//! The metrics of a gateway, in a registry of its own: several gateways in one process do not mix theirs, and nothing
//! global is installed.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Gauge, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use user_http_actors::metrics::STORE_COMMIT_CHANGES;

use crate::tls::Tls;

mod process;

const BUILD_INFO: &str = "user_http_server_build_info";
const CERTIFICATE_EXPIRY: &str = "user_http_server_certificate_expiry_timestamp_seconds";

/// The buckets of histograms of seconds: from a request that is answered from memory to a .blend file of several GiB
/// over a slow line.
const SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];

/// The buckets of histograms of changes in a commit. A commit has at most 1,024 commands; some have two changes.
const CHANGES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

/// How often the samples of histograms are added to their buckets. Until then each takes 16 bytes: with 20,000 requests
/// a second, 1 MiB.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3);

/// The metrics of a gateway, for `GET /metrics`. Clones share them.
///
/// [`UserHttpServer`](crate::UserHttpServer) has metrics of its own. An application that mounts the routes itself
/// starts the actors with [`Metrics::record`], and passes the metrics on to the
/// [`Gateway`](crate::Gateway::with_metrics), which adds the route:
///
/// ```
/// use actix_web::{App, test};
/// use user_http_actors::UserHttpActors;
/// use user_http_server::{Config, Gateway, Metrics, configure_api_routes};
///
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load(["gateway", "--memory"].map(Into::into), [])?;
/// let metrics = Metrics::new();
/// let actors = metrics.record(|| UserHttpActors::start(config.actors))?;
/// actix_web::rt::spawn(metrics.clone().upkeep());
/// let gateway = Gateway::new(actors, config.limits).with_metrics(metrics);
/// let app = test::init_service(App::new().configure(configure_api_routes(gateway))).await;
///
/// let scrape = test::TestRequest::get().uri("/metrics").to_request();
/// let answer = test::call_and_read_body(&app, scrape).await;
/// assert!(String::from_utf8(answer.to_vec())?.contains("\nuser_http_server_buffer_messages 0\n"));
/// # Ok(())
/// # }
/// ```
///
/// The metrics `http_…` are those of the servers of [`UserHttpServer`](crate::UserHttpServer); an application's own
/// server has none of them.
///
/// An application with another exporter needs none of this: it installs its recorder with the crate `metrics`, globally
/// or around the start of the actors.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    certificates: Arc<Mutex<Vec<(Gauge, Tls)>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that nothing reports to yet.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS);
        let builder = builder.and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(STORE_COMMIT_CHANGES.to_owned()), &CHANGES)
        });
        let recorder = builder.expect("each histogram has buckets").build_recorder();
        let handle = recorder.handle();
        let metrics = Self { recorder: Arc::new(recorder), handle, certificates: Arc::default() };
        metrics.record(|| {
            describe_gauge!(BUILD_INFO, "The version and the revision of the program; always 1.");
            let (version, revision) = (env!("CARGO_PKG_VERSION"), env!("BUILD_REVISION"));
            gauge!(BUILD_INFO, "version" => version, "revision" => revision).set(1.0);
        });
        metrics
    }

    /// Calls `start`. What it starts reports to these metrics: actors choose where they report to when they are made.
    pub fn record<T>(&self, start: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&*self.recorder, start)
    }

    /// Reports when the certificate of `server` expires, from now on.
    pub(crate) fn add_certificate(&self, server: &'static str, tls: Tls) {
        let gauge = self.record(|| {
            describe_gauge!(CERTIFICATE_EXPIRY, "When the certificate of a server expires, in seconds since 1970.");
            gauge!(CERTIFICATE_EXPIRY, "server" => server)
        });
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).push((gauge, tls));
    }

    /// Keeps the memory of the metrics bounded while nobody reads them. Never ends; for a task of its own.
    pub async fn upkeep(self) -> Infallible {
        let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            interval.tick().await;
            self.handle.run_upkeep();
        }
    }

    /// All metrics in Prometheus's text format, version 0.0.4, with those of the process.
    pub fn render(&self) -> String {
        for (gauge, tls) in self.certificates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            gauge.set(tls.expiry() as f64);
        }
        let mut text = self.handle.render();
        process::append_to(&mut text);
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use user_http_actors::UserHttpActors;
    use user_http_actors::codec::Format;

    use super::*;
    use crate::Config;

    const MESSAGE: &str = r#"{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "one", "BUFFER_MSG": 1}}"#;

    fn start(metrics: &Metrics) -> UserHttpActors {
        let config = Config::load(["gateway", "--memory"].map(Into::into), []).expect("a configuration");
        metrics.record(|| UserHttpActors::start(config.actors)).expect("nothing is read")
    }

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let text = metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
    }

    #[actix_web::test]
    async fn two_gateways_in_one_process_do_not_mix_their_metrics() {
        let (first, second) = (Metrics::new(), Metrics::new());
        let (actors, _others) = (start(&first), start(&second));
        actors.handle_communication_interface_message(Format::Json, MESSAGE).await.expect("space");
        let held = |metrics| value(metrics, "user_http_server_buffer_messages");
        assert_eq!((held(&first), held(&second)), (1.0, 0.0));
    }

    #[test]
    fn the_metrics_are_read_and_ages_grow_while_the_actors_hang() {
        let metrics = Metrics::new();
        let (hang, hanging) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let reporting = metrics.clone();
        let actors_thread = thread::spawn(move || {
            actix_web::rt::System::new().block_on(async {
                let actors = start(&reporting);
                actors.handle_communication_interface_message(Format::Json, MESSAGE).await.expect("space");
                hang.send(actors).expect("the test goes on");
                // no actor of this thread does anything until the test has ended
                let _ = ended.recv();
            });
        });
        let actors = hanging.recv().expect("the actors have started");
        let age = || {
            actors.update_ages();
            value(&metrics, "user_http_server_buffer_oldest_seconds")
        };
        let (first, began) = (age(), Instant::now());
        while age() < first + 0.1 {
            assert!(began.elapsed() < Duration::from_secs(30), "{first}, {}", age());
            thread::yield_now();
        }
        drop(end);
        actors_thread.join().expect("no panic");
    }
}
