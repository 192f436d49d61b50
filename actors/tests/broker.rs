//! The publisher and the consumer against RabbitMQ.

#[path = "broker/harness.rs"]
mod harness;
#[path = "broker/proxy.rs"]
mod proxy;
#[path = "broker/rabbitmq.rs"]
mod rabbitmq;
