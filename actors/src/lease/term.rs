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
    renew: Box<dyn Fn(RenewFor) -> BoxFuture<'static, Renewal> + Send + Sync>,
}

struct State {
    /// When the last successful renewal was asked for.
    renewed: Instant,
    /// Somebody else has the message.
    is_lost: bool,
    /// Nobody takes the lease over before its time.
    is_ending: bool,
}

/// What a lease is renewed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RenewFor {
    /// The next part of the message. A worker that comes back to another gateway may take the lease over.
    More,
    /// The end of the message. Nobody takes the lease over from now on.
    End,
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
    /// The term of a lease that was asked for at `since` and lasts for `length`, and so do its renewals. `is_ending`:
    /// nobody takes it over before that time.
    pub(crate) fn new(
        since: Instant,
        length: Duration,
        is_ending: bool,
        renew: impl Fn(RenewFor) -> BoxFuture<'static, Renewal> + Send + Sync + 'static,
    ) -> Self {
        let state = State { renewed: since, is_lost: false, is_ending };
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

    /// Renews the lease once, unless somebody else has the message.
    pub(crate) async fn renew(&self, purpose: RenewFor) {
        if self.state().is_lost {
            return;
        }
        let renewal = (self.renew)(purpose).await;
        let mut state = self.state();
        match renewal {
            Renewal::Renewed(asked) => {
                state.renewed = state.renewed.max(asked);
                state.is_ending |= purpose == RenewFor::End;
            }
            Renewal::Lost => state.is_lost = true,
            Renewal::Unknown => {}
        }
    }

    /// Whether the end of the message may be sent: a renewal has just succeeded, and nobody takes the lease over before
    /// its time. If not, the end is to be held back until [`confirm`](Self::confirm) has succeeded: so that a gateway
    /// whose lease another one has, because it was frozen or the worker has gone there, never completes a delivery.
    pub fn may_end(&self) -> bool {
        self.holds() && self.age() < FRESH && self.state().is_ending
    }

    /// Renews the lease for the end of the message, until that has succeeded or its time is over. Returns whether it
    /// holds.
    pub async fn confirm(&self) -> bool {
        while self.holds() && !self.may_end() {
            self.renew(RenewFor::End).await;
            if self.holds() && !self.may_end() {
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

    use super::*;

    const LENGTH: Duration = Duration::from_secs(25);

    /// A term whose renewals have these outcomes, and what it was renewed for.
    fn term(age: Duration, is_ending: bool, outcomes: Vec<Renewal>) -> (Term, Arc<Mutex<Vec<RenewFor>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let since = Instant::now().checked_sub(age).expect("the machine runs for a while");
        let renew = move |purpose| {
            let mut asked = log.lock().expect("no panic");
            let outcome = outcomes.get(asked.len()).copied();
            asked.push(purpose);
            Box::pin(async move { outcome.unwrap_or(Renewal::Unknown) }) as BoxFuture<'static, Renewal>
        };
        (Term::new(since, LENGTH, is_ending, renew), asked)
    }

    fn asked(by: &Mutex<Vec<RenewFor>>) -> Vec<RenewFor> {
        by.lock().expect("no panic").clone()
    }

    #[actix::test]
    async fn a_lease_is_confirmed_by_a_renewal_for_the_end_unless_one_has_just_succeeded() {
        let (ending, renewals) = term(Duration::ZERO, true, Vec::new());
        assert!(ending.confirm().await && asked(&renewals).is_empty());
        let (old, renewals) =
            term(Duration::from_secs(10), true, vec![Renewal::Unknown, Renewal::Renewed(Instant::now())]);
        assert!(old.confirm().await && old.may_end());
        assert_eq!(asked(&renewals), [RenewFor::End, RenewFor::End]);
    }

    #[test]
    fn a_renewal_without_an_answer_is_repeated_after_a_pause_and_one_with_an_answer_is_the_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let start = tokio::time::Instant::now();
            let outcomes = vec![Renewal::Unknown, Renewal::Unknown, Renewal::Renewed(Instant::now())];
            let (old, renewals) = term(Duration::from_secs(10), true, outcomes);
            assert!(old.confirm().await);
            assert_eq!(asked(&renewals).len(), 3);
            let paused = start.elapsed();
            assert!((2 * PAUSE..3 * PAUSE).contains(&paused), "{paused:?}");
        });
    }

    #[actix::test]
    async fn a_lease_that_may_be_taken_over_is_no_end_however_fresh_it_is() {
        let (open, renewals) = term(Duration::ZERO, false, vec![Renewal::Renewed(Instant::now()); 2]);
        open.renew(RenewFor::More).await;
        assert!(open.holds() && !open.may_end());
        assert!(open.confirm().await && open.may_end());
        assert_eq!(asked(&renewals), [RenewFor::More, RenewFor::End]);
    }

    #[actix::test]
    async fn a_lease_that_is_lost_or_over_is_not_confirmed() {
        let (lost, renewals) = term(Duration::from_secs(10), true, vec![Renewal::Lost]);
        assert!(!lost.confirm().await && !lost.holds());
        lost.renew(RenewFor::More).await;
        assert_eq!(asked(&renewals), [RenewFor::End], "a lease that is lost is not renewed again");
        let (over, renewals) = term(LENGTH, true, vec![Renewal::Renewed(Instant::now())]);
        assert!(!over.confirm().await && asked(&renewals).is_empty());
    }
}
