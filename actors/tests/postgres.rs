//! The buffer that gateways share, over a real PostgreSQL.

mod campaign;
mod contract;
mod faults;
mod harness;
mod model;
mod outages;
mod plans;
mod pooler;
mod proxy;
mod races;
#[path = "../../tests/support/postgres.rs"]
mod server;
mod takeovers;
