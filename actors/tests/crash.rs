//! Nothing that a store has acknowledged is lost, whatever becomes of the process, the power and the disk.

mod body_files;
mod disk;
mod disk_errors;
mod failed_sync;
mod full_disk;
mod keys;
mod power_loss;
mod relocation;
mod removals;
