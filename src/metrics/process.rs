//! The metrics `process_…`, under the names that Prometheus's official clients give them. They are written here and not
//! through the crate `metrics`, whose counters are whole numbers: a processor second is too coarse.

use std::fmt::{Display, Write};

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, boot_time_secs, page_size, ticks_per_second};

/// Appends the metrics of this process. Leaves out what cannot be read at the moment, for want of descriptors for
/// example.
pub fn append_to(text: &mut String) {
    let Ok(process) = Process::myself() else { return };
    let _ = append_times_and_memory(text, &process);
    if let Ok(open) = process.fd_count() {
        append(text, "process_open_fds", "gauge", "Number of open file descriptors.", open);
    }
    if let Ok(limits) = process.limits() {
        let help = "Maximum number of open file descriptors.";
        append(text, "process_max_fds", "gauge", help, shown(limits.max_open_files.soft_limit));
        let help = "Maximum amount of virtual memory available in bytes.";
        append(text, "process_virtual_memory_max_bytes", "gauge", help, shown(limits.max_address_space.soft_limit));
    }
}

fn append_times_and_memory(text: &mut String, process: &Process) -> ProcResult<()> {
    let stat = process.stat()?;
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
    let help = "Total user and system CPU time spent in seconds.";
    append(text, "process_cpu_seconds_total", "counter", help, seconds(stat.utime + stat.stime));
    append(text, "process_threads", "gauge", "Number of OS threads in the process.", stat.num_threads);
    append(text, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", stat.vsize);
    let resident = stat.rss * page_size();
    append(text, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident);
    let help = "Start time of the process since unix epoch in seconds.";
    let started = boot_time_secs()? as f64 + seconds(stat.starttime);
    append(text, "process_start_time_seconds", "gauge", help, started);
    Ok(())
}

fn shown(limit: LimitValue) -> String {
    match limit {
        LimitValue::Unlimited => "+Inf".to_owned(),
        LimitValue::Value(value) => value.to_string(),
    }
}

fn append(text: &mut String, name: &str, kind: &str, help: &str, value: impl Display) {
    // Writing to a string never fails.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}
