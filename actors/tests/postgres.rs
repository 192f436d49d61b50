//! The buffer that gateways share, over a real PostgreSQL.

#[path = "../../tests/support/ports.rs"]
mod ports;
#[path = "../../tests/support/postgres.rs"]
mod server;

/// The path tells `tests/run` what these tests need.
mod postgres {
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
    mod takeovers;
}
