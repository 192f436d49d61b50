//! What actors report, and whether the books balance.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

#[path = "../../../tests/support/scrape.rs"]
#[allow(dead_code, reason = "the file is shared with the integration tests")]
mod scrape;
pub use scrape::Scrape;

/// The metrics of the actors that it starts.
pub struct Books {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Books {
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        Self { handle: recorder.handle(), recorder }
    }

    /// Starts actors.
    pub fn start<T>(&self, start: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, start)
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::parse(self.handle.render())
    }
}
