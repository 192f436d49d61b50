//! What the kernel's scheduler is told about the threads of this process.

use rustix::process::getpriority_process;
use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id};
use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy};

/// What the library makes the niceness 0 of, which it sets together with the policy: it counts from 0 to 99.
const NICENESS_0: u8 = 47;

/// Lets a thread that is woken wait until the one that runs sleeps or has had its time (`SCHED_BATCH`), instead of
/// interrupting it at once. An actor then finds the messages of many requests, and a thread that speaks HTTP the answers
/// to many, where each would cost a change of threads there and another back: on two cores under full load, a `GET`
/// without a message takes a quarter less processor time. A core that is idle runs a woken thread at once, as ever.
///
/// Where somebody has given the process a niceness, nothing is changed.
///
/// # Errors
/// Why the policy stays as it is; everything works then, at a greater cost.
pub fn set() -> Result<(), String> {
    if getpriority_process(None) != Ok(0) {
        return Ok(());
    }
    let batch = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    let niceness = ThreadPriorityValue::try_from(NICENESS_0)?;
    // threads that are started later inherit it
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(niceness), batch)
        .map_err(|error| error.to_string())
}
