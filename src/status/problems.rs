//! What is wrong, in words that say what to do next.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;
use user_http_actors::messages::{BrokerState, BufferState, ConsumerState, OutboxState};

use crate::status::Answers;
use crate::status::health::{StoreHealth, database_failure, disk_health, is_out_of_resources};

/// A commit that takes longer than this is reported. A sync takes milliseconds, on a busy disk a second.
const SLOW_COMMIT: Duration = Duration::from_secs(3);

/// Messages for the user manager that wait longer than this are reported, although nothing else is wrong.
const LONG_WAIT: Duration = Duration::from_secs(5 * 60);

/// A buffer or outbox is reported from this share of its limit on, in percent.
const NEARLY_FULL: u64 = 90;

/// Whether the broker can be reached and used, and if not, what to type next.
const BROKER: &str = "user-http-server doctor";

/// Whether the buffer's database can be reached and used.
const DATABASE: &str = "user-http-server doctor";

/// Whether the disk has space and can be read, and the kernel's messages about it.
const DISK: &str = "user-http-server doctor; journalctl -k -n 20";

/// How much space the data directory has.
const SPACE: &str = "user-http-server doctor; df -h";

/// Which messages wait, for how long, and how large they are.
const MESSAGES: &str = "user-http-server messages list";

/// Which messages are parked, and why.
const PARKED: &str = "user-http-server messages parked";

/// Why the broker blocks: its alarms.
const ALARMS: &str = "user-http-server doctor; rabbitmqctl status";

/// Whether the queues behind the exchange exist and have consumers.
const QUEUES: &str = "user-http-server doctor; rabbitmqctl list_queues name messages consumers";

/// Something that an operator has to know.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    level: Severity,
    /// What is wrong, what it means, and what to do.
    text: String,
    /// The next command to type, if there is one.
    command: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Work is refused.
    Error,
    /// Work goes on, but something needs attention.
    Warning,
}

/// Finds what is wrong, the worst first.
pub(super) fn find(answers: &Answers, has_broker: bool) -> Vec<Problem> {
    let mut problems = Problems::default();
    if answers.is_stopping {
        problems.warn("The gateway is stopping: it finishes the requests in progress.".to_owned(), None);
    }
    for part in &answers.late {
        let text = format!("The {part} does not answer. Its numbers on this page are the last known ones.");
        problems.error(text, Some(DISK));
    }
    let last = &answers.last;
    let (buffer, outbox) = (last.buffer.as_ref(), last.outbox.as_ref());
    problems.of_store(buffer, outbox);
    buffer.into_iter().for_each(|buffer| problems.of_buffer(buffer));
    outbox.into_iter().for_each(|outbox| problems.of_outbox(outbox, has_broker));
    if let Some(consumer) = last.consumer.as_ref().and_then(Option::as_ref) {
        problems.of_consumer(consumer, outbox);
    }
    problems.0.sort_by_key(|problem| problem.level != Severity::Error);
    problems.0
}

#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn error(&mut self, text: String, command: Option<&'static str>) {
        self.0.push(Problem { level: Severity::Error, text, command });
    }

    fn warn(&mut self, text: String, command: Option<&'static str>) {
        self.0.push(Problem { level: Severity::Warning, text, command });
    }

    fn of_store(&mut self, buffer: Option<&BufferState>, outbox: Option<&OutboxState>) {
        if let Some(error) = database_failure(buffer) {
            let text = format!(
                "Messages for workers are refused (503), and frames go on: {error}. The gateway notices by itself when \
                 that is over."
            );
            self.error(text, Some(DATABASE));
        }
        match disk_health(buffer, outbox) {
            StoreHealth::Ok => {}
            StoreHealth::Full if is_out_of_resources(buffer, outbox) => self.error(
                "The gateway is out of file descriptors or memory, and refuses messages (503). Raise the limits of \
                 the service."
                    .to_owned(),
                Some("grep -E 'open files|processes' /proc/$(pidof user-http-server)/limits"),
            ),
            StoreHealth::Full => self.error(
                "No space is left on the disk of the data directory: messages are refused (503). Free some space; \
                 the gateway notices by itself."
                    .to_owned(),
                Some(SPACE),
            ),
            StoreHealth::Failed => self.error(
                "The disk has failed, and no message is accepted. Check the disk, then start the gateway again: \
                 everything that it has acknowledged is there."
                    .to_owned(),
                Some(DISK),
            ),
        }
        let busy = buffer.and_then(|buffer| buffer.store_busy).max(outbox.and_then(|outbox| outbox.store_busy));
        if let Some(busy) = busy.filter(|busy| *busy >= SLOW_COMMIT) {
            let time = duration(busy);
            let text = format!(
                "The disk of the data directory has not answered for {time}. Messages that need it wait until it does."
            );
            self.error(text, Some(DISK));
        }
    }

    fn of_buffer(&mut self, buffer: &BufferState) {
        let used = buffer.max_bytes - buffer.free_bytes;
        if is_nearly_full(used, buffer.max_bytes) {
            let (used, limit) = (bytes(used), bytes(buffer.max_bytes));
            let text = format!(
                "The buffer is nearly full: {used} of {limit} are in use. Beyond that, messages for workers are \
                 refused or wait in the broker. Workers fetch too few of them, or --max-buffered is too small."
            );
            self.warn(text, Some(MESSAGES));
        }
    }

    fn of_outbox(&mut self, outbox: &OutboxState, has_broker: bool) {
        let held = Held(outbox);
        let time = duration(outbox.broker_for);
        if let Some(obstacle) = outbox.frames_refused {
            let text = format!(
                "Frames are refused (503), because only the broker's confirm counts (--frame-ack broker), and \
                 {obstacle}."
            );
            self.error(text, Some(BROKER));
        }
        match outbox.broker {
            BrokerState::Disconnected => {
                let what = match outbox.messages {
                    0 if outbox.frames_refused.is_some() => "no message waits here".to_owned(),
                    0 => "messages for the user manager will wait here".to_owned(),
                    _ => format!("{held} {} here and will be sent when it is back", held.verb("waits", "wait")),
                };
                self.warn(format!("The broker has been away for {time}; {what}."), Some(BROKER));
            }
            BrokerState::Blocked => {
                let text = format!(
                    "The broker has accepted no messages for {time}, because it is short of memory or disk space; \
                     {held} {} here.",
                    held.verb("waits", "wait")
                );
                self.warn(text, Some(ALARMS));
            }
            BrokerState::Connected | BrokerState::None => {}
        }
        if let Some(waiting_for) = &outbox.waiting_for {
            self.warn(format!("{held} {} for {waiting_for}.", held.verb("waits", "wait")), Some(QUEUES));
        }
        let is_stuck = outbox.oldest.is_some_and(|oldest| oldest >= LONG_WAIT) && outbox.parked == 0;
        let oldest = duration(outbox.oldest.unwrap_or_default());
        if is_stuck && !has_broker {
            let text = format!(
                "The oldest message for the user manager has waited for {oldest}. The user manager does not take its \
                 messages (GET /UserManager/NextMessage), or does not delete them."
            );
            self.warn(text, Some(MESSAGES));
        } else if is_stuck && outbox.broker == BrokerState::Connected && outbox.waiting_for.is_none() {
            let text = format!(
                "The oldest message for the user manager has waited for {oldest} although the broker is connected."
            );
            self.warn(text, Some(QUEUES));
        }
        let (used, limit) = (bytes(outbox.bytes), bytes(outbox.max_bytes));
        if outbox.full {
            let text = format!(
                "The outbox is full: {used} of {limit} are in use. Frames are refused (503) until some are forwarded."
            );
            self.error(text, Some(if has_broker { QUEUES } else { MESSAGES }));
        } else if is_nearly_full(outbox.bytes, outbox.max_bytes) {
            let text =
                format!("The outbox is nearly full: {used} of {limit} are in use. Beyond that, frames are refused.");
            self.warn(text, Some(if has_broker { QUEUES } else { MESSAGES }));
        }
        if outbox.parked > 0 {
            let (parked, them) = (count(outbox.parked, "message"), if outbox.parked == 1 { "it" } else { "them" });
            let is = if outbox.parked == 1 { "is" } else { "are" };
            let text = format!(
                "{parked} {is} parked, because the broker refuses {them} permanently. Publish {them} again once the \
                 reason is mended, or discard {them}."
            );
            self.warn(text, Some(PARKED));
        }
    }

    fn of_consumer(&mut self, consumer: &ConsumerState, outbox: Option<&OutboxState>) {
        let is_connected = outbox.is_none_or(|outbox| outbox.broker != BrokerState::Disconnected);
        if !consumer.connected && is_connected {
            let text = "The gateway receives no messages for workers from the broker: that connection is away.";
            self.warn(text.to_owned(), Some(BROKER));
        }
        if consumer.paused {
            let text = "The buffer is full, so further messages for workers wait in the broker. Workers fetch too few \
                        of them, or --max-buffered is too small.";
            self.warn(text.to_owned(), Some(MESSAGES));
        }
    }
}

/// The messages of the outbox, as `312 messages (2.1 GiB)`.
struct Held<'a>(&'a OutboxState);

impl Held<'_> {
    fn verb(&self, one: &'static str, many: &'static str) -> &'static str {
        if self.0.messages == 1 { one } else { many }
    }
}

impl std::fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", count(self.0.messages, "message"), bytes(self.0.bytes))
    }
}

fn is_nearly_full(used: u64, limit: u64) -> bool {
    u128::from(used) * 100 >= u128::from(limit) * u128::from(NEARLY_FULL)
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// In the two largest units that say something: `4 min`, `2 h 5 min`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{} s", seconds.max(1)),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use user_http_actors::UserHttpActors;
    use user_http_actors::store::StoreError;

    use super::*;
    use crate::status::Status;
    use crate::{Config, RecentEvents};

    /// What is known of actors that have just started, where all is well.
    async fn well() -> Answers {
        let config = Config::load(["gateway", "--memory"].map(Into::into), []).expect("valid");
        let actors = UserHttpActors::start(config.actors).expect("nothing is read");
        Status::new(actors, RecentEvents::default(), None).ask().await
    }

    fn texts(answers: &Answers, has_broker: bool) -> Vec<String> {
        find(answers, has_broker).into_iter().map(|problem| problem.text).collect()
    }

    fn outbox(answers: &mut Answers) -> &mut OutboxState {
        answers.last.outbox.as_mut().expect("it has answered")
    }

    #[actix_web::test]
    async fn nothing_is_wrong_while_all_is_well() {
        assert_eq!(texts(&well().await, false), Vec::<String>::new());
    }

    #[actix_web::test]
    async fn a_broker_that_is_away_is_described_with_what_waits() {
        let mut answers = well().await;
        let state = outbox(&mut answers);
        (state.broker, state.broker_for) = (BrokerState::Disconnected, Duration::from_secs(4 * 60 + 59));
        (state.messages, state.bytes) = (312, 2_254_857_830);
        let expected =
            "The broker has been away for 4 min; 312 messages (2.1 GiB) wait here and will be sent when it is back.";
        assert_eq!(texts(&answers, true), [expected]);
        let state = outbox(&mut answers);
        (state.broker, state.messages, state.bytes) = (BrokerState::Blocked, 1, 700);
        assert!(texts(&answers, true)[0].ends_with("1 message (700 B) waits here."), "{answers:?}");
    }

    #[actix_web::test]
    async fn frames_that_are_refused_for_lack_of_a_confirm_come_first_and_nothing_is_said_to_wait() {
        let mut answers = well().await;
        let state = outbox(&mut answers);
        (state.broker, state.frames_refused) = (BrokerState::Disconnected, Some("there is no connection"));
        let texts = texts(&answers, true);
        assert!(texts[0].starts_with("Frames are refused (503)") && texts[0].contains("there is no conn"), "{texts:?}");
        assert!(texts[1].ends_with("; no message waits here."), "{texts:?}");
    }

    #[actix_web::test]
    async fn a_disk_that_is_full_has_failed_or_does_not_answer_comes_first() {
        for (failure, part) in [
            (StoreError::NoSpace("full".into()), "No space is left"),
            (StoreError::Busy("files".into()), "out of file descriptors"),
            (StoreError::Failed("sync".into()), "has failed"),
        ] {
            let mut answers = well().await;
            let state = outbox(&mut answers);
            (state.parked, state.messages, state.store_failure) = (1, 1, Some(failure));
            let problems = find(&answers, true);
            assert_eq!(problems.len(), 2, "{problems:?}");
            assert!(problems[0].level == Severity::Error && problems[0].text.contains(part), "{problems:?}");
            assert!(problems[1].text.starts_with("1 message is parked"), "{problems:?}");
        }
        let mut answers = well().await;
        answers.last.buffer.as_mut().expect("it has answered").store_busy = Some(Duration::from_secs(75));
        assert!(texts(&answers, false)[0].contains("has not answered for 1 min"), "{answers:?}");
    }

    #[actix_web::test]
    async fn every_command_begins_with_one_of_the_program() {
        let mut answers = well().await;
        answers.late = vec!["buffer"];
        let buffer = answers.last.buffer.as_mut().expect("it has answered");
        buffer.free_bytes = 0;
        buffer.store_busy = Some(Duration::from_secs(75));
        let state = outbox(&mut answers);
        (state.parked, state.full, state.frames_refused) = (1, true, Some("there is no connection"));
        (state.waiting_for, state.store_failure) = (Some("a queue".into()), Some(StoreError::NoSpace("full".into())));
        for (broker, has_broker) in
            [(BrokerState::Blocked, true), (BrokerState::Disconnected, true), (BrokerState::None, false)]
        {
            outbox(&mut answers).broker = broker;
            let problems = find(&answers, has_broker);
            assert!(problems.len() >= 6, "{problems:?}");
            for Problem { text, command, .. } in problems {
                assert!(command.is_some_and(|command| command.starts_with("user-http-server ")), "{text}: {command:?}");
            }
        }
    }

    #[actix_web::test]
    async fn an_outbox_that_fills_or_does_not_move_is_reported_before_it_refuses() {
        let mut answers = well().await;
        let state = outbox(&mut answers);
        (state.bytes, state.max_bytes) = (900, 1_000);
        assert!(texts(&answers, false)[0].contains("The outbox is nearly full: 900 B of 1000 B"), "{answers:?}");
        outbox(&mut answers).full = true;
        assert!(texts(&answers, false)[0].contains("The outbox is full"), "{answers:?}");
        let mut answers = well().await;
        outbox(&mut answers).oldest = Some(Duration::from_secs(3_600 + 120));
        assert!(texts(&answers, false)[0].contains("has waited for 1 h 2 min. The user manager"), "{answers:?}");
        outbox(&mut answers).broker = BrokerState::Connected;
        assert!(texts(&answers, true)[0].contains("1 h 2 min although the broker is connected"), "{answers:?}");
    }
}
