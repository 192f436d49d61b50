//! The actors, each with the real store or a real database, and a scripted broker or a real one.
//!
//! One program, because each takes long to be built. `codec_file.rs` measures the memory of its process, and
//! `simulation.rs` is often built alone: these are programs of their own.

mod administration;
mod backup;
mod blend;
mod body_memory;
mod broker;
mod buffer;
mod buffer_books;
mod codec;
mod codec_edges;
mod codec_growth;
mod confirm_through;
mod consumer;
mod crash;
mod file_references;
mod model;
mod parking;
#[path = "../../tests/support/ports.rs"]
mod ports;
mod postgres;
mod publisher;
mod removal;
mod store;
mod support;
mod waiting;
mod writer;
