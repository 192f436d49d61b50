//! The scheduling policy of the threads of this process.

use rustix::process::getpriority_process;
use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id};
use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy};

/// Niceness 0 on the scale of `thread_priority`, from 0 to 99. The library sets the niceness together with the policy.
const NICENESS_0: u8 = 47;

/// Sets `SCHED_BATCH`: a thread that wakes up does not preempt the running one, but waits until that sleeps or has used
/// its time slice. So an actor finds the messages of several requests at once, and an HTTP thread several replies,
/// instead of one context switch for each. On two cores under full load, a `GET` without a message takes a quarter less
/// processor time. An idle core still runs such a thread at once.
///
/// Changes nothing if the process was started with a niceness.
///
/// # Errors
/// Why the policy is unchanged. The program works then, but takes more processor time.
pub fn set() -> Result<(), String> {
    if getpriority_process(None) != Ok(0) {
        return Ok(());
    }
    let batch = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    let niceness = ThreadPriorityValue::try_from(NICENESS_0)?;
    // Threads that start later inherit it.
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(niceness), batch)
        .map_err(|error| error.to_string())
}
