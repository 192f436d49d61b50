//! The server as its users meet it: over HTTP and AMQP, with Python programs like the farm's own.
//!
//! Each row of the wire contract's tables has a test that is named for it. A test that needs more than the server's
//! binary says so in its path: `python::`, `rabbitmq::`, `postgres::`, `proxies::`, `blender::`, `browser::`,
//! `mounts::`, `package::` or `prometheus::`. `tests/run` installs what the tests that it runs need, and decides by
//! these names.

mod harness;
#[path = "../support/ports.rs"]
mod ports;

mod administration;
mod book;
mod browsers;
mod concurrency;
mod configuration;
mod connections;
mod embedded;
mod flipped_bits;
mod hand_over;
mod health;
mod history;
mod json_log;
mod kill;
mod logging;
mod metrics;
mod openapi;
mod page;
mod recorded_data;
mod request_ids;
mod resources;
mod routes;
mod service_manager;
mod status;
mod stopping;
mod tls;
mod words;

/// The subcommands, except `serve`.
mod command_line {
    mod arguments;
    mod backup;
    mod backup_load;
    mod check;
    mod client_tls;
    mod demo;
    pub mod doctor;
    mod documents;
    mod healthcheck;
    mod messages;
    mod tokens;
}

/// Tests with the farm's Python programs.
mod python {
    mod api;
    mod authentication;
    mod bad_input;
    mod blend_changes;
    mod blend_downloads;
    mod blend_links;
    mod blend_private;
    mod blend_references;
    mod blend_words;
    mod cached_workers;
    mod client;
    mod covered;
    mod delivery;
    mod digests;
    mod disk;
    mod example_clients;
    mod example_files;
    mod files;
    mod hand_over;
    mod hostile;
    mod idempotency;
    mod json;
    mod limits;
    mod log_lines;
    mod long_polling;
    mod openapi;
    mod pickle;
    mod pipelining;
    mod process;
    mod range;
    mod repr_digest;
    mod restart;
    mod round_trips;
    mod uploads;
    mod user_manager;
    mod worker_get;
    mod worker_post;
    mod worker_retries;
}

/// Tests with RabbitMQ and the farm's Python programs.
mod rabbitmq {
    #[path = "../../support/rabbitmq.rs"]
    mod node;
    pub use node::RabbitMq;

    mod amqp;
    mod amqp_campaign;
    mod amqp_cluster;
    mod amqp_confirm_through;
    mod amqp_deletions;
    mod amqp_downstream;
    mod amqp_faults;
    mod amqp_keys;
    mod amqp_parked;
    mod amqp_proxy;
    mod doctor;
    mod parked_command;
    mod tls_amqp;
}

/// Tests with PostgreSQL.
mod postgres {
    #[path = "../../support/postgres.rs"]
    mod server;
    pub use server::Postgres;

    mod doctor;
    mod gateways;
    mod takeovers;

    /// Tests with RabbitMQ and HAProxy as well.
    mod rabbitmq {
        mod proxies {
            mod campaign;
            mod nine;
        }
    }
}

/// Tests with Prometheus, RabbitMQ and the farm's Python programs.
mod prometheus {
    mod alerts;
    mod dashboard;
    mod node;
}

/// Tests with nginx, HAProxy and Caddy, and the farm's Python programs.
mod proxies {
    mod deliveries;
}

/// Tests with Blender and the farm's Python programs.
mod blender {
    mod demo;
    mod render_farm;
}

/// Tests with Debian's Chromium, some of them with more.
mod browser {
    mod proxies;
    mod rabbitmq;
    mod status_page;
}

/// Tests that mount a file system (as root, or in a user namespace), with the farm's Python programs.
mod mounts {
    mod backup_disk;
    mod blend_mounts;
}

/// Tests of the systemd units, the Debian package and the container image, with the tools that build and check them.
mod package {
    mod scripts;
}
