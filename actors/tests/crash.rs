//! Nothing that a store has acknowledged is lost, whatever becomes of the process, the power and the disk.

#[path = "crash/body_files.rs"]
mod body_files;
#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/disk_errors.rs"]
mod disk_errors;
#[path = "crash/failed_sync.rs"]
mod failed_sync;
#[path = "crash/full_disk.rs"]
mod full_disk;
#[path = "support/in_file.rs"]
mod in_file;
#[path = "crash/keys.rs"]
mod keys;
#[path = "support/owner.rs"]
mod owner;
#[path = "crash/power_loss.rs"]
mod power_loss;
#[path = "crash/relocation.rs"]
mod relocation;
#[path = "crash/removals.rs"]
mod removals;
#[path = "support/unsynced_disk.rs"]
mod unsynced_disk;
