//! RabbitMQ for the tests: one of the machine's own package and one of version 4.0, each started once and shared, with
//! a vhost for each test, since the farm's names of exchanges and queues are fixed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{SOON, eventually, holds};
use crate::rabbitmq::RabbitMq;

/// The vhosts of a shared broker. All are created when it starts, since each call of rabbitmqctl takes a second or two
/// of processor time.
const VHOSTS: usize = 80;

/// The vhosts of a broker that is killed: fewer, since it recovers each of them at every start.
const FAULTY_VHOSTS: usize = 20;

/// The versions of RabbitMQ that the tests run with.
#[derive(Clone, Copy, Debug)]
pub enum Version {
    /// Debian's package on this machine; 3.10 on bookworm.
    Debian,
    /// 4.0, in the folder that `tests/run` installs it into.
    V4_0,
}

/// A vhost of a broker that tests share.
pub struct Broker {
    /// Where the farm's programs connect to.
    pub url: String,
    /// The node, for `rabbitmqctl`.
    pub rabbitmq: &'static RabbitMq,
}

impl Broker {
    /// The name of the vhost.
    pub fn vhost(&self) -> &str {
        self.url.rsplit('/').next().expect("a vhost")
    }

    /// Waits until every message in the server's own queue has been acknowledged.
    #[track_caller]
    pub fn wait_until_all_is_acknowledged(&self) {
        eventually("everything is acknowledged", SOON, || {
            let held =
                self.rabbitmq.ctl(&["list_queues", "-p", self.vhost(), "--no-table-headers", "name", "messages"]);
            holds(held.split_whitespace().eq(["UHTTPSE_CI", "0"]), held)
        });
    }

    /// A fresh vhost.
    pub fn of(version: Version) -> Self {
        static DEBIAN: OnceLock<Vhosts> = OnceLock::new();
        static V4_0: OnceLock<Vhosts> = OnceLock::new();
        let shared = match version {
            Version::Debian => &DEBIAN,
            Version::V4_0 => &V4_0,
        };
        let vhosts = shared.get_or_init(|| Vhosts::start(version, VHOSTS));
        Self { url: vhosts.fresh(), rabbitmq: &vhosts.rabbitmq }
    }
}

/// A broker for one test at a time, which may kill and restart it.
pub struct FaultyBroker {
    /// Where the farm's programs connect to: a fresh vhost.
    pub url: String,
    slot: MutexGuard<'static, Slot>,
}

struct Slot {
    vhosts: Option<Vhosts>,
    killed: bool,
}

impl FaultyBroker {
    /// Waits until no other test uses it.
    pub fn of(version: Version) -> Self {
        static DEBIAN: Mutex<Slot> = Mutex::new(Slot { vhosts: None, killed: false });
        static V4_0: Mutex<Slot> = Mutex::new(Slot { vhosts: None, killed: false });
        let shared = match version {
            Version::Debian => &DEBIAN,
            Version::V4_0 => &V4_0,
        };
        // After a failed test the broker is running, or `killed` is set.
        let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let url = slot.vhosts.get_or_insert_with(|| Vhosts::start(version, FAULTY_VHOSTS)).fresh();
        let mut broker = Self { url, slot };
        if broker.slot.killed {
            broker.launch();
        }
        broker
    }

    /// Kills the broker, like a power failure.
    pub fn kill9(&mut self) {
        self.slot.killed = true;
        self.rabbitmq().kill9();
    }

    /// Restarts it with the data on its disk.
    pub fn launch(&mut self) {
        self.rabbitmq().launch();
        self.slot.killed = false;
    }

    /// Freezes it: its connections stay open, and it answers nothing.
    pub fn freeze(&mut self) {
        self.rabbitmq().sigstop();
    }

    /// Unfreezes it.
    pub fn thaw(&mut self) {
        self.rabbitmq().sigcont();
    }

    /// Sets the largest message that it accepts on channels that are opened from now on, in bytes.
    pub fn set_max_message_size(&mut self, limit: usize) {
        // RabbitMQ 3.10 reads the first of these, 4.0 the second
        let set = format!("application:set_env(rabbit, max_message_size, {limit})");
        self.ctl(&["eval", &format!("{set}, persistent_term:put(max_message_size, {limit}).")]);
    }

    /// Runs rabbitmqctl on it.
    pub fn ctl(&mut self, arguments: &[&str]) {
        self.rabbitmq().ctl(arguments);
    }

    fn rabbitmq(&mut self) -> &mut RabbitMq {
        &mut self.slot.vhosts.as_mut().expect("a broker").rabbitmq
    }
}

impl Drop for FaultyBroker {
    fn drop(&mut self) {
        // A failed test may have frozen the broker. The next test needs one that answers.
        self.thaw();
    }
}

/// A broker and its vhosts, one for each test.
struct Vhosts {
    rabbitmq: RabbitMq,
    count: usize,
    used: AtomicUsize,
}

impl Vhosts {
    fn start(version: Version, count: usize) -> Self {
        let rabbitmq = match version {
            Version::Debian => RabbitMq::start(),
            Version::V4_0 => RabbitMq::start_4_0(),
        };
        create_vhosts(&rabbitmq, count);
        Self { rabbitmq, count, used: AtomicUsize::new(0) }
    }

    /// The URL of the next one.
    fn fresh(&self) -> String {
        let number = self.used.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number <= self.count, "more tests use this broker than it has vhosts: create more");
        vhost_url(&self.rabbitmq, number)
    }
}

/// Creates the vhosts `test-1` to `test-COUNT`, with all permissions for the user `guest`.
pub fn create_vhosts(rabbitmq: &RabbitMq, count: usize) {
    rabbitmq.ctl(&[
        "eval",
        &format!(
            r#"[begin
                V = list_to_binary("test-" ++ integer_to_list(N)),
                ok = rabbit_vhost:add(V, <<"tests">>),
                ok = rabbit_auth_backend_internal:set_permissions(
                    <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
            end || N <- lists:seq(1, {count})]."#
        ),
    ]);
}

/// The URL of one of them.
pub fn vhost_url(rabbitmq: &RabbitMq, number: usize) -> String {
    let url = rabbitmq.url();
    let (server, _) = url.rsplit_once('/').expect("a vhost in the URL");
    format!("{server}/test-{number}")
}

/// Makes a test of each function that takes a [`Version`], for both versions.
macro_rules! for_each_broker {
    ($($test:ident),* $(,)?) => {
        crate::harness::tests_with!(with_debians_rabbitmq, crate::harness::Version::Debian, $($test),*);
        crate::harness::tests_with!(with_rabbitmq_4_0, crate::harness::Version::V4_0, $($test),*);
    };
}
pub(crate) use for_each_broker;
