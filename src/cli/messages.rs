//! `user-http-server messages`: lists, shows, discards and publishes the messages of a running gateway.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, Command};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::cli::client::{self, Answer, Client};
use crate::cli::text::{line, quoted, word};
use crate::cli::{Failure, Invocation};

/// What a path leaves as it is. Points are encoded too, because clients change `.` and `..`.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// How many messages a page has at most, the most that the server allows.
const PAGE: usize = 1_000;

pub fn command() -> Command {
    // without one, the paths of the API would be those of something else
    let id = |help: &'static str| {
        let arg = Arg::new("id").value_name("ID").required(true).help(help);
        arg.value_parser(NonEmptyStringValueParser::new())
    };
    let any = "The UUID of a buffered message, or the id of a message of the outbox";
    Command::new("messages")
        .about("List, show, discard and publish the messages of a running gateway")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("list").about("List the messages in the buffer and in the outbox"))
        .subcommand(Command::new("show").about("Show what is known of a message, without its content").arg(id(any)))
        .subcommand(Command::new("drop").about("Discard a message permanently").arg(id(any)))
        .subcommand(Command::new("parked").about("List the messages that the broker refuses"))
        .subcommand(Command::new("publish").about("Publish a parked message again").arg(id("The id of the message")))
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .global(true)
                .help("API server [default: the one that --api-bind describes, on this machine]"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Print what the API returns, instead of a table"),
        )
        .args(client::args("30s").map(|arg| arg.global(true)))
}

pub fn run(invocation: &Invocation<'_>) -> ExitCode {
    invocation.end(administer(invocation))
}

fn administer(invocation: &Invocation<'_>) -> Result<(), Failure> {
    let args = invocation.args;
    let gateway = Messages { client: Client::new(invocation, args.get_one("url"))?, as_json: args.get_flag("json") };
    let mut output = io::BufWriter::new(io::stdout().lock());
    let id = || args.get_one::<String>("id").map(String::as_str).unwrap_or_default();
    let done = match invocation.names[..] {
        ["show"] => gateway.show(&mut output, id()),
        ["drop"] => gateway.discard(&mut output, id()),
        ["parked"] => gateway.parked(&mut output),
        ["publish"] => gateway.publish(&mut output, id()),
        _ => gateway.list(&mut output),
    };
    if done.is_err() {
        // what is not written yet would be half a table, or half a JSON text
        drop(output.into_parts());
        return done;
    }
    Ok(output.flush()?)
}

struct Messages {
    client: Client,
    as_json: bool,
}

/// A page of messages, each as the server has written it.
#[derive(Deserialize)]
struct Page {
    messages: Vec<Box<RawValue>>,
    next: Option<String>,
}

/// Notices that the cursors of a list repeat, and keeps only one of them at a time (Brent's algorithm): the first, the
/// second, the fourth, the eighth. Once the pages go round, and the kept cursor is one of that round, it comes again.
#[derive(Default)]
struct Cursors {
    kept: Option<String>,
    count: u64,
}

impl Cursors {
    /// Whether this cursor, the next of the list, was there before.
    fn repeat(&mut self, next: String) -> bool {
        if self.kept.as_ref() == Some(&next) {
            return true;
        }
        self.count += 1;
        if self.count.is_power_of_two() {
            self.kept = Some(next);
        }
        false
    }
}

/// A buffered message.
#[derive(Deserialize)]
struct Buffered {
    uuid: String,
    bytes: u64,
    age_seconds: f64,
    blend: Option<String>,
    in_delivery: bool,
}

/// A message of the outbox.
#[derive(Deserialize)]
struct Outgoing {
    id: String,
    user: String,
    r#type: String,
    bytes: u64,
    age_seconds: f64,
    state: String,
}

/// The answer to a successful request.
#[derive(Deserialize)]
struct Success {
    #[serde(rename = "STATUS")]
    _status: String,
}

/// A parked message.
#[derive(Deserialize)]
struct Parked {
    id: String,
    user: String,
    r#type: String,
    size: u64,
    reason: String,
    /// Seconds since 1970.
    since: f64,
}

impl Messages {
    fn list(&self, output: &mut impl Write) -> Result<(), Failure> {
        if self.as_json {
            write!(output, "{{")?;
            for (name, separator) in [("buffer", ","), ("outbox", "}")] {
                write!(output, "\"{name}\":{{\"messages\":[")?;
                let mut is_first = true;
                self.each(name, |message| {
                    let comma = if std::mem::take(&mut is_first) { "" } else { "," };
                    Ok(write!(output, "{comma}{message}")?)
                })?;
                write!(output, "],\"next\":null}}{separator}")?;
            }
            return Ok(writeln!(output)?);
        }
        writeln!(output, "{:<7} {:<11} {:>14} {:>9}  ID", "WHERE", "STATE", "BYTES", "AGE")?;
        self.each("buffer", |message| Ok(self.read::<Buffered>(message.get())?.write_row(output)?))?;
        self.each("outbox", |message| Ok(self.read::<Outgoing>(message.get())?.write_row(output)?))
    }

    fn show(&self, output: &mut impl Write, id: &str) -> Result<(), Failure> {
        let mut found = None;
        self.each("buffer", |message| {
            if self.read::<Buffered>(message.get())?.uuid == id {
                found = Some(("buffer", message.to_owned()));
            }
            Ok(())
        })?;
        if found.is_none() {
            self.each("outbox", |message| {
                if self.read::<Outgoing>(message.get())?.id.eq_ignore_ascii_case(id) {
                    found = Some(("outbox", message.to_owned()));
                }
                Ok(())
            })?;
        }
        let Some((place, message)) = found else { return Err(self.nowhere(id)) };
        if self.as_json {
            return Ok(writeln!(output, "{message}")?);
        }
        if place == "buffer" {
            return Ok(self.read::<Buffered>(message.get())?.write_all(output)?);
        }
        let message = self.read::<Outgoing>(message.get())?;
        message.write_all(output)?;
        if message.state == "parked" {
            let parked: Vec<Parked> = self.read_answer(&self.get("/UserManager/Parked")?)?;
            for parked in parked.iter().filter(|parked| parked.id == message.id) {
                writeln!(output, "parked  {}", since(parked.since))?;
                writeln!(output, "reason  {}", line(&parked.reason))?;
            }
        }
        Ok(())
    }

    fn discard(&self, output: &mut impl Write, id: &str) -> Result<(), Failure> {
        let path = utf8_percent_encode(id, PLAIN);
        for place in ["buffer", "outbox"] {
            let answer = self.client.delete(&format!("/admin/{place}/{path}"))?;
            match answer.status {
                204 if self.as_json => return Ok(()),
                204 => return Ok(writeln!(output, "{} is discarded from the {place}", quoted(id))?),
                404 if answer.detail().is_some() => {}
                _ => return Err(self.refused(output, &answer)),
            }
        }
        Err(self.nowhere(id))
    }

    fn parked(&self, output: &mut impl Write) -> Result<(), Failure> {
        let answer = self.get("/UserManager/Parked")?;
        if self.as_json {
            return Ok(write_json(output, &answer)?);
        }
        let parked: Vec<Parked> = self.read_answer(&answer)?;
        writeln!(output, "{:<20} {:>14}  {:<36}  {:<16}  USER  REASON", "SINCE", "BYTES", "ID", "TYPE")?;
        for Parked { id, user, r#type, size, reason, since: when } in &parked {
            let (id, kind, user, when) = (word(id), word(r#type), word(user), since(*when));
            writeln!(output, "{when:<20} {size:>14}  {id:<36}  {kind:<16}  {user}  {}", line(reason))?;
        }
        Ok(())
    }

    fn publish(&self, output: &mut impl Write, id: &str) -> Result<(), Failure> {
        let answer = self.client.post(&format!("/UserManager/Parked/{}/Publish", utf8_percent_encode(id, PLAIN)))?;
        match answer.status {
            200 => {
                self.read_answer::<Success>(&answer)?;
                match self.as_json {
                    true => Ok(write_json(output, &answer)?),
                    false => Ok(writeln!(output, "{} is published again", quoted(id))?),
                }
            }
            _ => Err(self.refused(output, &answer)),
        }
    }

    /// Calls `handle` with each message of the buffer or the outbox. One page is in memory at a time.
    fn each(&self, name: &str, mut handle: impl FnMut(&RawValue) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut path = format!("/admin/{name}?limit={PAGE}");
        let mut cursors = Cursors::default();
        loop {
            let page: Page = self.read_answer(&self.get(&path)?)?;
            page.messages.iter().try_for_each(|message| handle(message))?;
            let Some(next) = page.next else { return Ok(()) };
            let endless = |why: &str| Failure::Failed(format!("the list of {} has no end: {why}", self.client.base()));
            if page.messages.is_empty() {
                return Err(endless("an empty page names a next one"));
            }
            path = format!("/admin/{name}?limit={PAGE}&after={}", utf8_percent_encode(&next, PLAIN));
            if cursors.repeat(next) {
                return Err(endless("a page names itself or an earlier page as the next one"));
            }
        }
    }

    /// The answer of a route whose only success is 200.
    fn get(&self, path: &str) -> Result<Answer, Failure> {
        let answer = self.client.get(path)?;
        if answer.status == 200 { Ok(answer) } else { Err(Failure::Failed(self.client.refusal(&answer))) }
    }

    fn read_answer<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Failure> {
        self.read(&String::from_utf8_lossy(&answer.body))
    }

    fn read<T: DeserializeOwned>(&self, json: &str) -> Result<T, Failure> {
        serde_json::from_str(json).map_err(|error| {
            let base = self.client.base();
            Failure::Failed(format!("the answer of {base} is not that of a gateway's API server: {error}"))
        })
    }

    /// A refusal in words and, if that is asked for, as the server has written it.
    fn refused(&self, output: &mut impl Write, answer: &Answer) -> Failure {
        if self.as_json
            && answer.detail().is_some()
            && let Err(error) = write_json(output, answer).and_then(|()| output.flush())
        {
            return error.into();
        }
        Failure::Failed(self.client.refusal(answer))
    }

    fn nowhere(&self, id: &str) -> Failure {
        let base = self.client.base();
        Failure::Failed(format!("no message {} is in the buffer or the outbox of {base}", quoted(id)))
    }
}

impl Buffered {
    fn state(&self) -> &'static str {
        if self.in_delivery { "in_delivery" } else { "waiting" }
    }

    fn write_row(&self, output: &mut impl Write) -> io::Result<()> {
        let Self { uuid, bytes, age_seconds, blend, .. } = self;
        write!(output, "{:<7} {:<11} {bytes:>14} {:>9}  {}", "buffer", self.state(), age(*age_seconds), word(uuid))?;
        match blend {
            Some(path) => writeln!(output, "  blend {}", word(path)),
            None => writeln!(output),
        }
    }

    fn write_all(&self, output: &mut impl Write) -> io::Result<()> {
        let Self { uuid, bytes, age_seconds, blend, .. } = self;
        writeln!(output, "uuid    {}", word(uuid))?;
        writeln!(output, "where   buffer")?;
        writeln!(output, "state   {}", self.state())?;
        writeln!(output, "bytes   {bytes}")?;
        writeln!(output, "age     {}", age(*age_seconds))?;
        match blend {
            Some(path) => writeln!(output, "blend   {}", word(path)),
            None => Ok(()),
        }
    }
}

impl Outgoing {
    fn write_row(&self, output: &mut impl Write) -> io::Result<()> {
        let Self { id, user, r#type, bytes, age_seconds, state } = self;
        let (id, kind, user, state) = (word(id), word(r#type), word(user), word(state));
        writeln!(output, "{:<7} {state:<11} {bytes:>14} {:>9}  {id}  {kind} from {user}", "outbox", age(*age_seconds))
    }

    fn write_all(&self, output: &mut impl Write) -> io::Result<()> {
        let Self { id, user, r#type, bytes, age_seconds, state } = self;
        writeln!(output, "id      {}", word(id))?;
        writeln!(output, "where   outbox")?;
        writeln!(output, "state   {}", word(state))?;
        writeln!(output, "type    {}", word(r#type))?;
        writeln!(output, "user    {}", word(user))?;
        writeln!(output, "bytes   {bytes}")?;
        writeln!(output, "age     {}", age(*age_seconds))
    }
}

fn write_json(output: &mut impl Write, answer: &Answer) -> io::Result<()> {
    output.write_all(&answer.body)?;
    writeln!(output)
}

/// An age without spaces, such as 2h5m. Its two largest units are enough.
fn age(seconds: f64) -> String {
    let whole = Duration::from_secs(seconds.max(0.0) as u64);
    humantime::format_duration(whole).to_string().split(' ').take(2).collect()
}

/// A time in the form of RFC 3339, in UTC.
fn since(seconds: f64) -> String {
    // a later one has no such form
    let known = Some(seconds).filter(|seconds| *seconds < 253_402_300_800.0);
    let since_1970 = known.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match since_1970.and_then(|since| UNIX_EPOCH.checked_add(since)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::Cursors;

    #[test]
    fn cursors_that_repeat_are_noticed_within_a_few_rounds_and_others_never() {
        for (start, round) in (0..10).flat_map(|start| (1..10).map(move |round| (start, round))) {
            let mut cursors = Cursors::default();
            let pages = (0..start).chain((0..).map(|at| start + at % round));
            let seen = pages.take_while(|page| !cursors.repeat(page.to_string())).count();
            assert!((start + round..=2 * start + 4 * round).contains(&seen), "{start} {round}: {seen}");
        }
        let mut cursors = Cursors::default();
        assert!((0..10_000).all(|page| !cursors.repeat(page.to_string())));
    }
}
