//! The stream of reports: one task computes them for all status pages that are open.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::status::{Status, lock};

/// How often the state is looked at. At most ten reports a second are sent, including the one that a page gets when it
/// opens. A look takes about 20 µs.
const INTERVAL: Duration = Duration::from_millis(110);

/// A report is sent when nothing has changed for this long, and then within [`INTERVAL`]: at least one a second.
const HEARTBEAT: Duration = Duration::from_millis(850);

/// The reports for one page, as JSON. Its drop ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    reports: watch::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Subscription {
    /// The next report. Reports that come while nobody asks for one are skipped. `None` at the end, when the service
    /// stops.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.reports.changed().await.ok()?;
            let report = self.reports.borrow_and_update().clone();
            // before the first one there is an empty one
            if !report.is_empty() {
                return Some(report);
            }
        }
    }
}

impl Status {
    /// Subscribes to the reports. `None` if as many pages are open as may be.
    pub fn subscribe(&self) -> Option<Subscription> {
        let permit = Arc::clone(&self.0.streams).try_acquire_owned().ok()?;
        let mut feed = lock(&self.0.feed);
        let reports = match feed.upgrade() {
            Some(sender) => {
                let mut reports = sender.subscribe();
                // the current one is sent at once
                reports.mark_changed();
                reports
            }
            None => {
                let (sender, reports) = watch::channel(Bytes::new());
                let sender = Arc::new(sender);
                *feed = Arc::downgrade(&sender);
                actix_web::rt::spawn(self.clone().feed(sender));
                reports
            }
        };
        Some(Subscription { reports, _permit: permit })
    }

    /// Sends reports until nobody is subscribed any more, or the service stops.
    async fn feed(self, sender: Arc<watch::Sender<Bytes>>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = None;
        loop {
            ticks.tick().await;
            {
                let mut feed = lock(&self.0.feed);
                if sender.receiver_count() == 0 {
                    *feed = Weak::new();
                    return;
                }
            }
            let report = self.report().await;
            let timeless = report.timeless();
            let is_due =
                sent.as_ref().is_none_or(|(last, at): &(_, Instant)| *last != timeless || at.elapsed() >= HEARTBEAT);
            if is_due {
                // it consists of strings and numbers
                let json = serde_json::to_vec(&report).unwrap_or_default();
                sender.send_replace(json.into());
                sent = Some((timeless, Instant::now()));
            }
            if report.is_stopping() {
                return;
            }
        }
    }
}
