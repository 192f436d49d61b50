//! All tests of this module need Debian's package `rabbitmq-server`; `tests/run` decides by the module's name what to
//! install.

#[path = "../../../tests/support/rabbitmq.rs"]
mod node;
pub use node::RabbitMq;

mod away;
mod basics;
mod cluster;
mod downstream;
mod order;
mod pause;
mod poison;
mod restart;
mod returned;
mod rights;
mod rules;
