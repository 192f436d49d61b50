//! A cluster of three nodes of RabbitMQ 4.0, started once and shared by the tests that kill its nodes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::broker::{create_vhosts, vhost_url};
use super::eventually;
use crate::rabbitmq::RabbitMq;

/// One for each test.
const VHOSTS: usize = 10;

/// A node joins and its members of the queues have started, on a machine that does much else.
const WHOLE: Duration = Duration::from_secs(120);

/// A cluster for one test at a time, all of whose nodes run at its start.
pub struct Cluster {
    vhost: usize,
    slot: MutexGuard<'static, Option<Shared>>,
}

impl Drop for Cluster {
    /// A test that fails may leave a node that cannot be restarted: the next one gets another cluster.
    fn drop(&mut self) {
        if thread::panicking() {
            *self.slot = None;
        }
    }
}

struct Shared {
    nodes: Vec<RabbitMq>,
    used_vhosts: usize,
}

impl Cluster {
    /// How many nodes it has: the least of which one can be lost.
    pub const NODES: usize = 3;

    /// With a fresh vhost. Waits until no other test uses it.
    pub fn get() -> Self {
        static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
        let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = slot.get_or_insert_with(|| {
            let nodes = RabbitMq::start_cluster_4_0(Self::NODES);
            create_vhosts(&nodes[0], VHOSTS);
            Shared { nodes, used_vhosts: 0 }
        });
        shared.used_vhosts += 1;
        assert!(shared.used_vhosts <= VHOSTS, "more tests use this cluster than it has vhosts: create more");
        let mut cluster = Self { vhost: shared.used_vhosts, slot };
        cluster.make_whole();
        cluster
    }

    /// Where the farm's programs connect to a node.
    pub fn url(&self, node: usize) -> String {
        vhost_url(self.node(node), self.vhost)
    }

    /// The address of a node, as it stands in its URL and in the gateway's log.
    pub fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.node(node).port)
    }

    /// Kills a node, like a power failure.
    pub fn kill9(&mut self, node: usize) {
        self.node_mut(node).kill9();
    }

    /// Restarts a killed node with the data on its disk, while another one runs.
    pub fn launch(&mut self, node: usize) {
        self.node_mut(node).launch();
    }

    /// Kills a node, and its disk is lost too.
    pub fn lose(&mut self, node: usize) {
        self.node_mut(node).lose();
    }

    /// Puts an empty node in the place of one that was [lost](Self::lose), while `other` runs.
    pub fn replace(&mut self, node: usize, other: usize) {
        let nodes = &mut self.slot.as_mut().expect("a cluster").nodes;
        let [lost, other] = nodes.get_disjoint_mut([node, other]).expect("two nodes");
        lost.replace(other);
    }

    /// Restarts every killed node, and waits until any one can be lost: the members of all quorum queues run.
    #[track_caller]
    pub fn make_whole(&mut self) {
        let nodes = &mut self.slot.as_mut().expect("a cluster").nodes;
        nodes.iter_mut().filter(|node| !node.is_running()).for_each(RabbitMq::launch);
        nodes[0].ctl(&["await_online_nodes", &Self::NODES.to_string()]);
        eventually("every quorum queue has a majority without any one node", WHOLE, || {
            if nodes[0].can_be_spared() { Ok(()) } else { Err(nodes[0].ctl(&["cluster_status"])) }
        });
    }

    /// The names and types of the queues in this test's vhost, by a node that runs.
    pub fn queue_types(&self, node: usize) -> String {
        let vhost = format!("test-{}", self.vhost);
        self.node(node).ctl(&["list_queues", "-p", &vhost, "--no-table-headers", "name", "type"])
    }

    fn node(&self, node: usize) -> &RabbitMq {
        &self.slot.as_ref().expect("a cluster").nodes[node]
    }

    fn node_mut(&mut self, node: usize) -> &mut RabbitMq {
        &mut self.slot.as_mut().expect("a cluster").nodes[node]
    }
}
