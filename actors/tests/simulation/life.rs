//! A process with those who have to do with it: what they are told is compared with what was promised.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use user_http_actors::Error;
use user_http_actors::broker::Settlement;
use user_http_actors::messages::{Drain, PeekBufferMsg};
use user_http_actors::store::StoreError;

use crate::disk::{EIO, EMFILE, ENOSPC, Fault, FaultKind};
use crate::exchange::number_of;
use crate::machine::Gate;
use crate::process::{BUFFER, OUTBOX, Process, STORES, settle};
use crate::requests::{Delivery, Requests, Taken, ended, send};
use crate::story::{NAMES, NAMES_OF_BROKER, PATIENCE, Story};

/// Whether the answer says for certain that a message is not stored.
fn is_certain(error: &Error) -> bool {
    !matches!(error, Error::Stopping | Error::Store(StoreError::Failed(_) | StoreError::Gone(_)))
}

/// A process, and those who have to do with it.
pub struct Life {
    pub process: Process,
    pub requests: Requests,
    /// Errors of the disk have happened, after which less is known.
    is_faulty: bool,
    pub sync_has_failed: bool,
    is_stopping: bool,
    /// Whoever was to have an answer by then has it.
    overdue: Instant,
    /// The names of deliveries and discards before this step.
    busy: Vec<String>,
    /// What had to be there before this step, by name.
    expected: Vec<(String, Option<u64>)>,
}

impl Life {
    pub async fn start(story: &mut Story, ttl: Duration) -> Self {
        let process = Process::start(&story.machine, story.frame_ack, ttl).await;
        let mut life = Self {
            process,
            requests: Requests::default(),
            is_faulty: false,
            sync_has_failed: false,
            is_stopping: false,
            overdue: Instant::now(),
            busy: Vec::new(),
            expected: Vec::new(),
        };
        if !ttl.is_zero() {
            life.look_at_what_is_found(story).await;
        }
        life
    }

    /// What a start finds is what had to be there, or what nobody had an answer for.
    async fn look_at_what_is_found(&mut self, story: &mut Story) {
        for name in NAMES.into_iter().chain(NAMES_OF_BROKER) {
            let expected = story.buffered.expected(name);
            let found = self.look_at(story, name).await;
            assert!(found.is_some() || expected.is_none(), "message {expected:?} of {name} is not found by a start");
            story.buffered.only_found(name, found);
        }
    }

    /// The number of the message of this name; `None` if there is none, or whether there is one is being decided.
    pub async fn look_at(&self, story: &mut Story, name: &str) -> Option<u64> {
        let peek = send(&self.process.buffer, PeekBufferMsg { buffer_uuid: name.into(), wait: Duration::ZERO });
        settle().await;
        let view = ended(&mut vec![((), peek)]).await.pop()?.1.ok()?;
        let number = number_of(&view.payload.read_verified().expect("readable"));
        story.buffered.offered(name, number);
        Some(number)
    }

    pub fn gates(&self) -> [Gate; 2] {
        [BUFFER, OUTBOX].map(|store| self.process.stores[store].gate.clone())
    }

    fn busy_names(&self) -> Vec<String> {
        let delivered = self.requests.deliveries.iter().map(|delivery| delivery.name.clone());
        delivered.chain(self.requests.discards.iter().map(|((name, _), _)| name.clone())).collect()
    }

    /// To be called before anything happens.
    pub fn note_before(&mut self, story: &Story) {
        self.busy = self.busy_names();
        let names = NAMES.into_iter().chain(NAMES_OF_BROKER);
        self.expected = names.map(|name| (name.to_owned(), story.buffered.expected(name))).collect();
    }

    pub async fn advance(&mut self, story: &mut Story, time: Duration) {
        self.note_before(story);
        story.elapsed += time;
        if time >= PATIENCE {
            self.overdue = Instant::now();
        }
        tokio::time::advance(time).await;
        self.settle(story).await;
    }

    /// Lets one commit pass, maybe with an error of the disk.
    pub fn commit(&mut self, story: &mut Story, store: usize, may_fail: bool) -> String {
        let fault = (may_fail && story.chance(0.08)).then(|| {
            let (kind, error, for_good) = [
                (FaultKind::Write, ENOSPC, true),
                (FaultKind::Write, ENOSPC, false),
                (FaultKind::Any, EMFILE, false),
                (FaultKind::Any, EIO, false),
                (FaultKind::Sync, EIO, false),
            ][story.random.random_range(0..5)];
            Fault { kind, at: story.random.random_range(1..4), error, for_good }
        });
        if let Some(fault) = fault {
            self.is_faulty = true;
            self.sync_has_failed |= fault.error == EIO;
            self.process.stores[store].set_fault(Some(fault));
        }
        self.process.stores[store].commit();
        match fault {
            Some(Fault { for_good: false, .. }) => self.process.stores[store].set_fault(None),
            None if story.chance(0.2) => self.process.stores[store].set_fault(None),
            _ => {}
        }
        format!("commit of {}{}", STORES[store], fault.map_or(String::new(), |fault| format!(", {fault:?}")))
    }

    /// Lets the actors work, and takes in what they have answered. What has been promised is checked.
    pub async fn settle(&mut self, story: &mut Story) {
        settle().await;
        if self.process.stores[BUFFER].was_full() {
            story.buffered.disk_was_full();
        }
        self.take_in_for_workers(story).await;
        self.take_in_for_user_manager(story).await;
        let [buffer, outbox] = &mut self.process.stores;
        buffer.gone_for_good().into_iter().for_each(|number| story.buffered.gone_for_good(number));
        outbox.gone_for_good().into_iter().for_each(|number| story.outgoing.gone_for_good(number));
    }

    async fn take_in_for_workers(&mut self, story: &mut Story) {
        let (got, refused): (Vec<_>, Vec<_>) =
            ended(&mut self.requests.asked).await.into_iter().partition(|(_, answer)| answer.is_ok());
        // first, since what somebody gets may have been replaced in the same moment
        for (asked, leased) in got.into_iter().filter_map(|(asked, answer)| Some((asked, answer.ok()?))) {
            let body = leased.view.payload.read_verified().expect("readable");
            let number = number_of(&body);
            story.buffered.offered(&asked.name, number);
            let is_twice = self.requests.deliveries.iter().any(|other| other.number == number);
            assert!(!is_twice, "{number} is delivered twice at once");
            self.requests.deliveries.push(Delivery { name: asked.name, number, leased });
        }
        for (number, answer) in ended(&mut self.requests.adds).await {
            match answer {
                Ok(()) => story.buffered.accepted(number),
                // the removal of what was stored and then refused may have failed
                Err(Error::NoCapacity { .. }) if self.is_faulty => story.buffered.refused(number, false),
                Err(error) => story.buffered.refused(number, is_certain(&error)),
            }
        }
        for (queued, settlement) in story.queue.take_in(&self.process.consuming) {
            match settlement {
                Settlement::Ack if queued.is_bad => panic!("{queued:?} is accepted"),
                Settlement::Ack => story.buffered.accepted(queued.number),
                Settlement::Reject => assert!(queued.is_bad, "{queued:?} is rejected"),
                Settlement::Requeue => {}
            }
        }
        for ((name, number), answer) in ended(&mut self.requests.discards).await {
            match (answer, number) {
                (Ok(()), Some(number)) => {
                    story.buffered.completed(number);
                    story.buffered.gone_for_good(number);
                }
                (Ok(()), None) => panic!("{name} is discarded, and there was nothing"),
                (Err(Error::NoBufferMsg), _) => self.check_absent(story, &name),
                (Err(error), Some(number)) if !is_certain(&error) => story.buffered.perhaps_gone(number),
                _ => {}
            }
        }
        for (asked, answer) in refused {
            match answer.map(drop) {
                Ok(()) => {}
                Err(Error::NoBufferMsg) => self.check_absent(story, &asked.name),
                Err(Error::InDelivery) => {
                    let is_busy = self.busy.contains(&asked.name) || self.busy_names().contains(&asked.name);
                    assert!(is_busy, "nobody delivers {}", asked.name);
                }
                Err(Error::Stopping) if self.is_stopping => {}
                Err(error) => panic!("{}: {error}", asked.name),
            }
        }
        for (asked, _) in &self.requests.asked {
            assert!(asked.until >= self.overdue, "a worker that asked for {} has no answer", asked.name);
            let is_busy = self.busy_names().contains(&asked.name);
            let there = story.buffered.expected(&asked.name);
            assert!(is_busy || there.is_none(), "a worker waits for {}, although {there:?} is there", asked.name);
        }
    }

    /// Somebody was told that there is no message of this name.
    fn check_absent(&self, story: &Story, name: &str) {
        let before = self.expected.iter().find(|(expected, _)| expected == name).and_then(|(_, number)| *number);
        let is_lost = before.is_some() && before == story.buffered.expected(name);
        assert!(!is_lost, "{name} is not there, although message {before:?} was accepted");
    }

    async fn take_in_for_user_manager(&mut self, story: &mut Story) {
        if let Some(exchange) = &mut self.process.exchange {
            for published in exchange.take_in() {
                story.ids.note(published.message_id, published.number);
                story.outgoing.published(published.number, published.message_id);
            }
        }
        let is_long_ago = story.is_long_ago();
        for (number, answer) in ended(&mut self.requests.posts).await {
            story.outgoing.answered(number, &answer, is_long_ago);
        }
        for (number, answer) in ended(&mut self.requests.misuses).await {
            let is_refused = matches!(answer, Err(Error::KeyReused | Error::Stopping));
            assert!(is_refused || is_long_ago, "another body has the key of {number}: {answer:?}");
        }
        for (number, answer) in ended(&mut self.requests.outbox_discards).await {
            match answer {
                Ok(()) => story.outgoing.discarded(number, true),
                Err(error) if !is_certain(&error) => story.outgoing.discarded(number, false),
                Err(_) => {}
            }
        }
        for (number, answer) in ended(&mut self.requests.deletions).await {
            match answer {
                Ok(()) => {
                    story.outgoing.deleted(number);
                    self.requests.taken.retain(|taken| taken.number != number);
                }
                Err(error) if !is_certain(&error) => story.outgoing.perhaps_deleted(number),
                Err(_) => {}
            }
        }
        for (lease, answer) in ended(&mut self.requests.taking).await {
            if let Ok(Some(next)) = answer {
                let body = next.payload.read_verified().expect("readable");
                let (number, message_id) = (number_of(&body), next.message_id);
                story.ids.note(message_id, number);
                story.outgoing.published(number, message_id);
                self.check_turn(story, number);
                if !lease.is_zero() {
                    self.requests.taken.retain(|taken| taken.number != number);
                    let until = Instant::now() + lease;
                    self.requests.taken.push(Taken { number, message_id, until, next: Some(next) });
                }
            }
        }
    }

    /// The user manager gets this message: nobody else has it, and it is the oldest one.
    fn check_turn(&self, story: &Story, number: u64) {
        let now = Instant::now();
        let is_leased = |number: u64| {
            let mut taken = self.requests.taken.iter();
            taken.any(|taken| taken.number == number && taken.until + Duration::from_millis(2) > now)
        };
        let is_leaving = |number: u64| {
            let mut removals = self.requests.deletions.iter().chain(&self.requests.outbox_discards);
            removals.any(|(leaving, _)| *leaving == number)
        };
        let was_leased = self.requests.taken.iter().any(|taken| taken.number == number && taken.until > now);
        assert!(!was_leased, "{number} is leased to somebody else");
        let earlier =
            story.outgoing.waiting().find(|waiting| *waiting < number && !is_leased(*waiting) && !is_leaving(*waiting));
        assert_eq!(earlier, None, "comes before {number}");
    }

    /// Writes down what has happened, and checks the actors' own figures.
    pub async fn record(&mut self, story: &mut Story, step: &str) {
        let (buffer, outbox) = self.process.check().await;
        let unbalanced = self.process.books.scrape().unbalanced(0);
        let unbalanced: Vec<String> = unbalanced.into_iter().filter(|line| line.starts_with("buffer")).collect();
        story.history.push(format!(
            "{step} | buffer {} ({} in delivery, {} waiting), outbox {} ({} unstored, {} parked, {:?}), {:?}",
            buffer.messages,
            buffer.in_delivery,
            buffer.waiting,
            outbox.messages,
            outbox.unstored,
            outbox.parked,
            outbox.broker,
            story.elapsed,
        ));
        assert_eq!(unbalanced, Vec::<String>::new());
    }

    /// The process is killed during a commit of this store.
    pub fn kill(&mut self, story: &mut Story, store: usize) {
        let operations = story.random.random_range(0..6);
        self.process.stores[store].kill_after(operations);
        self.process.stores[1 - store].gate.close();
        self.forget(story);
    }

    /// The process has ended: who waited for an answer does not know.
    fn forget(&mut self, story: &mut Story) {
        for ((_, number), _) in &self.requests.discards {
            number.iter().for_each(|number| story.buffered.perhaps_gone(*number));
        }
        self.requests.outbox_discards.iter().for_each(|(number, _)| story.outgoing.discarded(*number, false));
        self.requests.deletions.iter().for_each(|(number, _)| story.outgoing.perhaps_deleted(*number));
        for flying in self.process.exchange.iter().flat_map(|exchange| exchange.in_flight()) {
            if story.random.random_bool(0.5) {
                story.outgoing.has_arrived(flying.number);
            }
        }
        story.buffered.killed();
        story.outgoing.killed();
    }

    /// The process stops in order.
    pub async fn stop(&mut self, story: &mut Story) {
        self.note_before(story);
        self.is_stopping = true;
        self.requests.deliveries.clear();
        self.process.stores.iter().for_each(|store| store.set_fault(None));
        if story.chance(0.3) {
            self.is_faulty = true;
            let fault = Fault { kind: FaultKind::Write, at: 1, error: ENOSPC, for_good: false };
            self.process.stores[BUFFER].set_fault(Some(fault));
        }
        let consumer = actix::spawn(self.process.consuming.consumer.send(Drain));
        self.work_until(story, || consumer.is_finished()).await;
        let publisher = actix::spawn(self.process.publisher.send(Drain));
        let buffer = actix::spawn(self.process.buffer.send(Drain));
        self.work_until(story, || publisher.is_finished() && buffer.is_finished()).await;
        self.settle(story).await;
        self.gates().iter().for_each(|gate| gate.close());
        self.forget(story);
    }

    /// Lets everything go on until then.
    async fn work_until(&mut self, story: &mut Story, is_done: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !is_done() {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not stop");
            self.settle(story).await;
            (0..STORES.len()).for_each(|store| self.process.stores[store].commit());
            tokio::time::advance(Duration::from_millis(100)).await;
            // the end of the consumer's link takes a thread
            std::thread::yield_now();
        }
    }
}
