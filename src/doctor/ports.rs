//! The addresses of the two servers: free, or taken by the gateway. No socket is bound to them, because a gateway that
//! starts at this moment needs them.

use std::net::{SocketAddr, TcpListener};

use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};
use procfs::process::{FDTarget, Process, all_processes};

use super::Finding;
use crate::Config;
use crate::config::overlap;

const PORT: &str = "port";

/// The names of the processes that may listen for the gateway: itself, as the kernel shortens its name, and the service
/// manager that passes it the sockets.
const OWN: [&str; 3] = ["user-http-serve", "user-http-server", "systemd"];

pub fn probe(config: &Config) -> Vec<Finding> {
    let listening: Vec<TcpNetEntry> = [tcp(), tcp6()].into_iter().flatten().flatten().collect();
    let servers = [("worker server", config.http_bind), ("API server", config.api_bind)];
    servers.into_iter().map(|(server, address)| examine(server, address, &listening)).collect()
}

fn examine(server: &str, address: SocketAddr, listening: &[TcpNetEntry]) -> Finding {
    let what = format!("{address} of the {server}");
    if address.port() == 0 {
        return Finding::ok(PORT, format!("{what} is chosen at the start"));
    }
    // any port, so that the one that is asked for stays free
    if let Err(error) = TcpListener::bind((address.ip(), 0)) {
        let text = format!("{what}: this machine cannot listen on {}: {error}", address.ip());
        return Finding::failed(PORT, text, "ip -brief address");
    }
    let takes = |entry: &&TcpNetEntry| entry.state == TcpState::Listen && overlap(entry.local_address, address);
    let command = format!("ss -ltnp 'sport = :{}'", address.port());
    let Some(taken) = listening.iter().find(takes) else {
        return Finding::ok(PORT, format!("{what} is free"));
    };
    match listener(taken.inode) {
        Some((pid, name)) if OWN.contains(&name.as_str()) => {
            Finding::ok(PORT, format!("{what} is taken by {name} (process {pid})"))
        }
        Some((pid, name)) => {
            let text =
                format!("{what} is taken by another program, {name} (process {pid}); stop it, or change the address");
            Finding::failed(PORT, text, command)
        }
        None => {
            let text = format!("{what} is taken by a process that only root can see; type: sudo {command}");
            Finding::warning(PORT, text)
        }
    }
}

/// The process that has a socket, and its name; `None` if this user may not see it.
fn listener(inode: u64) -> Option<(i32, String)> {
    let has = |process: &Process| {
        let descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.into_iter().any(|descriptor| matches!(descriptor.target, FDTarget::Socket(found) if found == inode))
    };
    let process = all_processes().ok()?.flatten().find(has)?;
    Some((process.pid, process.stat().ok()?.comm))
}
