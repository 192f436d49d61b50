//! How long a lease in a shared database lasts: until another gateway may have the message.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

/// A renewal that is younger than this counts as one that has just succeeded.
const FRESH: Duration = Duration::from_secs(1);

/// The pause after a renewal whose outcome is unknown.
const PAUSE: Duration = Duration::from_millis(500);

/// The time of a lease, by the gateway's own clock. It ends before the lease ends in the database, because it begins
/// before the database is asked.
pub struct Term {
    state: Mutex<State>,
    /// How long a renewal lasts.
    length: Duration,
    renew: Box<dyn Fn() -> BoxFuture<'static, Renewal> + Send + Sync>,
}

struct State {
    /// When the last successful renewal was asked for.
    renewed: Instant,
    /// Somebody else has the message.
    is_lost: bool,
}

/// The outcome of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It succeeded; it was asked for at this time.
    Renewed(Instant),
    /// Somebody else has the message, or it is gone.
    Lost,
    /// There was no answer.
    Unknown,
}

impl Term {
    /// The term of a lease that was asked for at `since` and lasts for `length`, and so do its renewals.
    pub(crate) fn new(
        since: Instant,
        length: Duration,
        renew: impl Fn() -> BoxFuture<'static, Renewal> + Send + Sync + 'static,
    ) -> Self {
        let state = State { renewed: since, is_lost: false };
        Self { state: Mutex::new(state), length, renew: Box::new(renew) }
    }

    /// How long ago the last successful renewal was asked for.
    pub(crate) fn age(&self) -> Duration {
        self.state().renewed.elapsed()
    }

    /// Whether nobody else can have the message. If not, nothing more of it may be sent.
    pub fn holds(&self) -> bool {
        let state = self.state();
        !state.is_lost && state.renewed.elapsed() < self.length
    }

    /// Renews the lease once.
    pub(crate) async fn renew(&self) {
        let renewal = (self.renew)().await;
        let mut state = self.state();
        match renewal {
            Renewal::Renewed(asked) => state.renewed = state.renewed.max(asked),
            Renewal::Lost => state.is_lost = true,
            Renewal::Unknown => {}
        }
    }

    /// Whether a renewal has just succeeded. If not, the end of the message is to be held back until
    /// [`confirm`](Self::confirm) has: so that a gateway that was frozen, and whose lease another one has taken over,
    /// never completes a delivery.
    pub fn is_fresh(&self) -> bool {
        self.holds() && self.age() < FRESH
    }

    /// Renews the lease until that has succeeded, or its time is over. Returns whether it holds.
    pub async fn confirm(&self) -> bool {
        while self.holds() && !self.is_fresh() {
            self.renew().await;
            if self.holds() && !self.is_fresh() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.holds()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // nothing panics while it holds this lock
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Term").field("age", &self.age()).field("holds", &self.holds()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LENGTH: Duration = Duration::from_secs(25);

    /// A term whose renewals have these outcomes, and how many of them were asked for.
    fn term(age: Duration, outcomes: Vec<Renewal>) -> (Term, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&asked);
        let since = Instant::now().checked_sub(age).expect("the machine runs for a while");
        let renew = move || {
            let outcome = outcomes.get(counts.fetch_add(1, Ordering::SeqCst)).copied();
            Box::pin(async move { outcome.unwrap_or(Renewal::Unknown) }) as BoxFuture<'static, Renewal>
        };
        (Term::new(since, LENGTH, renew), asked)
    }

    #[actix::test]
    async fn a_lease_is_confirmed_by_a_renewal_unless_one_has_just_succeeded() {
        let (fresh, asked) = term(Duration::ZERO, Vec::new());
        assert!(fresh.confirm().await && asked.load(Ordering::SeqCst) == 0);
        let (old, asked) = term(Duration::from_secs(10), vec![Renewal::Unknown, Renewal::Renewed(Instant::now())]);
        assert!(old.confirm().await && old.is_fresh() && asked.load(Ordering::SeqCst) == 2);
    }

    #[actix::test]
    async fn a_lease_that_is_lost_or_over_is_not_confirmed() {
        let (lost, _) = term(Duration::from_secs(10), vec![Renewal::Lost]);
        assert!(!lost.confirm().await && !lost.holds());
        let (over, asked) = term(LENGTH, vec![Renewal::Renewed(Instant::now())]);
        assert!(!over.confirm().await && asked.load(Ordering::SeqCst) == 0);
    }
}
