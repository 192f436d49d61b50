//! The broker: whether it can be reached and used, and what stands behind it.

use std::panic::resume_unwind;
use std::thread;

use user_http_actors::broker::amqp::AmqpConfig;
use user_http_actors::broker::amqp::probe::{self, Examination, Found, PeerQueue, Permission, ProbeError, QueueState};

use super::{Finding, Level, quote};
use crate::Config;

const BROKER: &str = "broker";
const EXCHANGE: &str = "exchange";
const QUEUE: &str = "queue";
const PERMISSION: &str = "permission";
const BINDING: &str = "peer's queue";

pub fn probe(config: &Config) -> Vec<Finding> {
    let Some(amqp) = &config.actors.amqp else {
        let text = "none configured: the user manager fetches its messages over HTTP";
        return vec![Finding::ok(BROKER, text)];
    };
    let nodes = amqp.nodes();
    // a node that does not answer takes long
    let examined: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = nodes.iter().map(|node| scope.spawn(|| probe::examine(node))).collect();
        let results = running.into_iter().map(|probe| probe.join().unwrap_or_else(|panic| resume_unwind(panic)));
        nodes.iter().zip(results).collect()
    });
    let can_work = examined.iter().any(|(_, result)| result.is_ok());
    let mut all: Vec<_> = examined
        .iter()
        .map(|(node, result)| match result {
            Ok(_) => Finding::ok(BROKER, format!("logged in to {}", node.url)),
            Err(error) => unusable(node, error, if can_work { Level::Warning } else { Level::Failed }),
        })
        .collect();
    // the nodes of a cluster share everything else
    let found = examined.into_iter().find_map(|(node, result)| Some((node, result.ok()?)));
    all.extend(found.into_iter().flat_map(|(node, found)| findings(node, &found)));
    all
}

fn unusable(amqp: &AmqpConfig, error: &ProbeError, level: Level) -> Finding {
    let url = &amqp.url;
    let (user, vhost) = (quote(url.user()), quote(url.vhost()));
    let command = match error {
        ProbeError::Unreachable(_) | ProbeError::Other(_) => "rabbitmqctl status (on the broker's machine)".to_owned(),
        ProbeError::Tls(_) => format!("openssl s_client -showcerts -connect {} </dev/null", quote(url.address())),
        ProbeError::Login => format!("rabbitmqctl authenticate_user {user} (it asks for the password)"),
        ProbeError::Vhost(_) => format!("rabbitmqctl add_vhost {vhost}; {}", grant(amqp)),
    };
    Finding { level, ..Finding::failed(BROKER, format!("{url}: {error}"), command) }
}

/// The command that gives the account all permissions of docs/rabbitmq.md.
fn grant(amqp: &AmqpConfig) -> String {
    let AmqpConfig { url, publish_exchange, consume_exchange, consume_queue, .. } = amqp;
    let any_of = |names: &[&str]| quote(format!("^({})$", names.join("|")));
    format!(
        "rabbitmqctl set_permissions -p {} {} {} {} {}",
        quote(url.vhost()),
        quote(url.user()),
        any_of(&[consume_exchange, publish_exchange, consume_queue]),
        any_of(&[consume_queue, publish_exchange]),
        any_of(&[consume_exchange, consume_queue]),
    )
}

fn findings(amqp: &AmqpConfig, found: &Examination) -> Vec<Finding> {
    let AmqpConfig { publish_exchange, consume_exchange, consume_queue, .. } = amqp;
    let mut all = vec![
        object(amqp, EXCHANGE, publish_exchange, &found.publish_exchange),
        object(amqp, EXCHANGE, consume_exchange, &found.consume_exchange),
        object(amqp, QUEUE, consume_queue, &found.consume_queue),
    ];
    all.extend(found.consume_state.and_then(|state| consumers(amqp, state)));
    all.push(match &found.may_publish {
        Permission::Granted => Finding::ok(PERMISSION, format!("may publish to exchange {publish_exchange:?}")),
        Permission::Refused(why) => {
            Finding::failed(PERMISSION, format!("may not publish to exchange {publish_exchange:?}: {why}"), grant(amqp))
        }
        Permission::Unknown => unknown_permission(&format!("to publish to exchange {publish_exchange:?}")),
    });
    let binds = format!("bind queue {consume_queue:?} to exchange {consume_exchange:?}");
    all.push(match &found.may_bind {
        Permission::Granted => Finding::ok(PERMISSION, format!("may {binds}")),
        Permission::Refused(why) => {
            let grant = grant(amqp);
            Finding::warning(
                PERMISSION,
                format!("may not {binds}, so make sure that it is bound: {why}; or type: {grant}"),
            )
        }
        Permission::Unknown => unknown_permission(&format!("to {binds}")),
    });
    all.extend(found.awaited.iter().map(|(name, queue)| awaited(amqp, name, queue)));
    all.push(binding(amqp));
    all
}

fn object(amqp: &AmqpConfig, kind: &'static str, name: &str, found: &Found) -> Finding {
    match found {
        Found::AsDeclared => Finding::ok(kind, format!("{name:?} exists as the gateway declares it")),
        Found::Missing => {
            let text = format!("{name:?} does not exist; the gateway declares it when it connects, if it may");
            Finding::warning(kind, text)
        }
        Found::Different(why) => {
            let text = format!(
                "{name:?} exists with other properties and is used as it is; if that is not intended, delete it: {why}"
            );
            Finding::warning(kind, text)
        }
        Found::OtherType(why) => {
            let vhost = quote(amqp.url.vhost());
            let text = format!("{name:?} has another type than --amqp-queue-type says: {why}; once it is empty");
            Finding::failed(kind, text, format!("rabbitmqctl delete_queue -p {vhost} {} --if-empty", quote(name)))
        }
        Found::Undeclarable => {
            let text =
                format!("{name:?} exists; this account may not declare it, so something else must, if it is lost");
            Finding::ok(kind, text)
        }
        Found::Unusable(why) => {
            let vhost = quote(amqp.url.vhost());
            let command = format!("rabbitmqctl list_{kind}s -p {vhost} name");
            Finding::failed(kind, format!("{name:?} cannot be used: {why}"), command)
        }
    }
}

/// Several consumers share the messages of a queue.
fn consumers(amqp: &AmqpConfig, QueueState { messages, consumers }: QueueState) -> Option<Finding> {
    let (queue, vhost) = (&amqp.consume_queue, quote(amqp.url.vhost()));
    let text = match consumers {
        0 | 1 => {
            return Some(Finding::ok(QUEUE, format!("{queue:?} has {messages} messages and {consumers} consumers")));
        }
        _ => format!(
            "{queue:?} has {consumers} consumers, and each gets only a part of the messages; only gateways that share \
             a store may consume the same queue: rabbitmqctl list_consumers -p {vhost}"
        ),
    };
    Some(Finding::warning(QUEUE, text))
}

fn unknown_permission(what: &str) -> Finding {
    Finding::warning(PERMISSION, format!("{what}: cannot be known until the exchange and the queue exist"))
}

fn awaited(amqp: &AmqpConfig, name: &str, queue: &PeerQueue) -> Finding {
    let vhost = quote(amqp.url.vhost());
    let command = format!("rabbitmqctl list_queues -p {vhost} name messages consumers");
    let waits = "nothing is published until its service runs (--amqp-await-queue)";
    match queue {
        PeerQueue::There(QueueState { consumers: 0, .. }) => {
            Finding::failed(BINDING, format!("{name:?} has no consumer, and {waits}"), command)
        }
        PeerQueue::There(QueueState { messages, consumers }) => {
            Finding::ok(BINDING, format!("{name:?} has {consumers} consumers and {messages} messages"))
        }
        PeerQueue::Exclusive => Finding::ok(BINDING, format!("{name:?} exists, exclusive to its consumer")),
        PeerQueue::Missing => Finding::failed(BINDING, format!("{name:?} does not exist, and {waits}"), command),
        PeerQueue::Unknown(why) => Finding::failed(BINDING, format!("{name:?} cannot be looked at: {why}"), command),
    }
}

/// AMQP 0-9-1 cannot list bindings, and a message to find out would reach the farm.
fn binding(amqp: &AmqpConfig) -> Finding {
    let AmqpConfig { url, publish_exchange, routing_key, .. } = amqp;
    let text = format!(
        "whether a queue is bound to exchange {publish_exchange:?} with the key {routing_key:?} cannot be known without \
         sending a message; look for it in: rabbitmqctl list_bindings -p {} source_name routing_key destination_name",
        quote(url.vhost())
    );
    Finding::warning(BINDING, text)
}
