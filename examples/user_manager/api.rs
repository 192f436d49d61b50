//! Receives messages from the API server, for a farm without a broker.

use std::thread;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode};

use crate::amqp::Result;
use crate::inbox::{Inbox, Message, Next};
use crate::{Args, Deadline, http};

/// The longest wait that the server accepts.
const WAIT: Duration = Duration::from_secs(60);

/// How long an answer may take in addition to the wait.
const ANSWER: Duration = Duration::from_secs(30);

const RETRY: Duration = Duration::from_secs(1);

pub fn receive(args: &Args, deadline: Deadline, inbox: &mut Inbox) -> Result<()> {
    let config = Agent::config_builder().timeout_connect(Some(ANSWER)).timeout_per_read(Some(WAIT + ANSWER));
    let agent = args.access.agent(&args.api, config, args.identity.load()?)?;
    let mut reached = false;
    loop {
        match next(&agent, args, deadline, inbox) {
            Ok(Next::Done) => return Ok(()),
            Ok(Next::More) => reached = true,
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Connection(error)) => {
                let why = format!("{}: {}", args.api, args.access.explain(&error));
                // A server that was reachable may be restarting; if it never was, the URL is probably wrong.
                if !reached || http::is_final(&error) {
                    return Err(why.into());
                }
                eprintln!("{why}; trying again");
                thread::sleep(RETRY.min(deadline.left()?));
            }
        }
    }
}

enum Failure {
    Connection(ureq::Error),
    Fatal(Box<dyn std::error::Error>),
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

fn next(agent: &Agent, args: &Args, deadline: Deadline, inbox: &mut Inbox) -> std::result::Result<Next, Failure> {
    let wait = deadline.left()?.min(WAIT).as_secs_f64().ceil();
    let mut url = args.api.join("/UserManager/NextMessage")?;
    url.query_pairs_mut().append_pair("wait", &wait.to_string()).append_pair("lease", &args.lease.to_string());
    let mut answer = agent.get(url.as_str()).call().map_err(Failure::Connection)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NO_CONTENT => return Ok(Next::More),
        status => {
            let text = answer.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("{url} answered {}", args.access.refusal(status, text.trim())).into());
        }
    }
    let text = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let id = text(answer.headers(), "Message-Id").ok_or("a message has no Message-Id")?;
    let deliveries = text(answer.headers(), "Delivery-Count").and_then(|count| count.parse().ok());
    let pickled = text(answer.headers(), "DATA_FORMAT").as_deref() == Some("BYTES");
    let body = answer.body_mut().with_config().limit(u64::MAX).read_to_vec().map_err(Failure::Connection)?;

    let next = inbox.take(&Message { id: Some(&id), deliveries, pickled, body: &body })?;
    delete(agent, args, &id)?;
    Ok(next)
}

fn delete(agent: &Agent, args: &Args, id: &str) -> std::result::Result<(), Failure> {
    let mut url = args.api.join("/UserManager/Messages/")?;
    url.path_segments_mut().map_err(|()| "--api is not the URL of a server")?.pop_if_empty().push(id);
    let mut answer = agent.delete(url.as_str()).call().map_err(Failure::Connection)?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        // Its lease expired, and another user manager has processed it meanwhile.
        StatusCode::NOT_FOUND => Ok(()),
        status => {
            let text = answer.body_mut().read_to_string().unwrap_or_default();
            Err(format!("{url} answered {}", args.access.refusal(status, text.trim())).into())
        }
    }
}
