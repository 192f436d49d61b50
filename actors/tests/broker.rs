//! The publisher and the consumer against RabbitMQ. Debian's package `rabbitmq-server` must be installed.

#[path = "broker/away.rs"]
mod away;
#[path = "broker/basics.rs"]
mod basics;
#[path = "broker/harness.rs"]
mod harness;
#[path = "broker/poison.rs"]
mod poison;
#[path = "../../tests/support/rabbitmq.rs"]
mod rabbitmq;
#[path = "broker/returned.rs"]
mod returned;
#[path = "broker/rights.rs"]
mod rights;
#[path = "broker/way.rs"]
mod way;
