//! The server as its users meet it: over HTTP and AMQP, with Python programs like the farm's own.
//!
//! Every row of the wire contract's tables has a test that is named for it. `tests/run` installs what they need.

#[path = "../support/rabbitmq.rs"]
mod rabbitmq;

mod harness;

mod amqp;
mod amqp_deletions;
mod amqp_faults;
mod amqp_parked;
mod amqp_proxy;
mod amqp_way;
mod api;
mod authentication;
mod bad_input;
mod blend_changes;
mod blend_links;
mod blend_mounts;
mod blend_private;
mod blend_words;
mod browsers;
mod concurrency;
mod configuration;
mod connections;
mod covered;
mod delivery;
mod disk;
mod example_clients;
mod example_files;
mod files;
mod health;
mod hostile;
mod json;
mod kill;
mod limits;
mod log_lines;
mod logging;
mod pickle;
mod pipelining;
mod process;
mod proxies;
mod range;
mod render_farm;
mod resources;
mod restart;
mod round_trips;
mod routes;
mod stopping;
mod tls;
mod tls_amqp;
mod user_manager;
mod words;
mod worker_get;
mod worker_post;
