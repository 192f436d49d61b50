//! A segment that could not be begun, for want of space: the log goes on in the one before it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use user_http_actors::backup::{Options, back_up};
use user_http_actors::store::log::LogStore;

use crate::backup::history::numbers;
use crate::backup::{folder, opened, put, records, segments};

#[test]
fn a_segment_that_is_given_up_at_any_moment_of_a_backup_is_left_out_and_the_one_before_it_may_be_written_to() {
    let mut steps = 0;
    for at in 0.. {
        let folder = folder();
        let directory = folder.path().join("data/buffer");
        let (mut store, _) = LogStore::open(&directory).expect("a new store");
        put(&mut store, 1..20, 100);
        let segment = segments(&directory).remove(0);
        let content = records(&segment);
        // as the log does before it begins another
        let file = OpenOptions::new().write(true).open(&segment).expect("a segment");
        file.set_len(content.len() as u64).expect("writable");
        let mut begun = content[..28].to_vec();
        begun[8..16].copy_from_slice(&2_u64.to_le_bytes());
        let given_up = directory.join("0000000000000002.log");
        fs::write(&given_up, begun).expect("writable");
        let accesses = AtomicUsize::new(0);
        let give_up = || {
            if accesses.fetch_add(1, Ordering::Relaxed) == at {
                fs::remove_file(&given_up).expect("it was begun");
                // the beginning of a record that is being written
                file.write_all_at(&[1; 20], content.len() as u64).expect("writable");
            }
        };
        let options = Options { before_access: &give_up, ..Options::new(10) };
        let target = folder.path().join("backup");
        back_up(&folder.path().join("data"), &target, &options).unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert_eq!(numbers(&opened(&target).1), (1..20).collect(), "at {at}");
        steps = accesses.into_inner();
        if at >= steps {
            break;
        }
    }
    assert!(steps > 10, "{steps}");
}
