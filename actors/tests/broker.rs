//! The publisher and the consumer against RabbitMQ.

mod harness;
mod proxy;
#[path = "broker/rabbitmq.rs"]
mod rabbitmq;
