//! The publisher and the consumer against RabbitMQ.

#[path = "broker/harness.rs"]
mod harness;
#[path = "../../tests/support/ports.rs"]
mod ports;
#[path = "broker/proxy.rs"]
mod proxy;
#[path = "broker/rabbitmq.rs"]
mod rabbitmq;
