//! Actors.
#![deny(missing_docs)]

pub mod broker;
pub mod codec;
pub mod payload;
