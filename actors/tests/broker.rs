//! The publisher and the consumer against RabbitMQ.

#[path = "broker/harness.rs"]
mod harness;
#[path = "broker/rabbitmq.rs"]
mod rabbitmq;
