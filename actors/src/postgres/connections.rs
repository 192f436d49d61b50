//! The connections to the database: a few that operations borrow.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Config, NoTls, Row};

use super::PostgresConfig;
use super::schema;
pub use super::session::Parameter;
use super::session::{self, Session};
use super::tls::Rustls;
use crate::blend::SharedTagKey;
use crate::store::StoreError;

/// How many connections a gateway has at most. PostgreSQL allows 100 by default, and each costs it a process of some
/// 10 MiB. An operation keeps one for the time of its statements, which is milliseconds.
const MAX_CONNECTIONS: usize = 8;

/// How long an operation waits for a connection, including the time to make one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long connecting to one host may take, and to one of its addresses. All hosts are tried at the same time.
const HOST_TIMEOUT: Duration = Duration::from_secs(3);
const ADDRESS_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long the database may take for the statements of an operation, or for one chunk of a body. With
/// [`CONNECT_TIMEOUT`] that is less than the 10 s within which a request is answered. A commit takes milliseconds, on a
/// busy disk a second.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Connections(Arc<Pool>);

struct Pool {
    /// Each with its name.
    hosts: Vec<(String, Config)>,
    tls: Option<Rustls>,
    require_sync: i64,
    tag_key: SharedTagKey,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

/// A borrowed connection. It is closed when it is dropped, unless it is given back: so nobody meets the remains of an
/// operation that has broken off.
pub struct Connection {
    session: Session,
    /// When the operation must have ended.
    until: Instant,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The CAs of the system cannot be read.
    pub fn new(config: &PostgresConfig) -> io::Result<Self> {
        let tls = if config.url.is_tls() { Some(Rustls::new()?) } else { None };
        let require_sync = config.require_sync.into();
        let mut hosts = config.url.hosts();
        for (_, host) in &mut hosts {
            host.target_session_attrs(TargetSessionAttrs::ReadWrite).connect_timeout(ADDRESS_TIMEOUT);
            host.application_name("user-http-server").tcp_user_timeout(OPERATION_TIMEOUT);
            host.keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5));
        }
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Ok(Self(Arc::new(Pool {
            hosts,
            tls,
            require_sync,
            tag_key: SharedTagKey::default(),
            permits,
            idle: Mutex::default(),
        })))
    }

    /// Borrows a connection, and makes one if none is idle.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn get(&self) -> Result<Connection, StoreError> {
        self.borrow(true).await
    }

    /// The key that the database has for the tags of files. Each new connection reads it.
    pub fn tag_key(&self) -> &SharedTagKey {
        &self.0.tag_key
    }

    /// As [`get`](Self::get), but changes nothing in the database: the tables may be missing, or unknown. It is not to
    /// be given back.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn get_unprepared(&self) -> Result<Connection, StoreError> {
        self.borrow(false).await
    }

    async fn borrow(&self, prepared: bool) -> Result<Connection, StoreError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let permit = timeout_at(deadline, self.0.permits.clone().acquire_owned()).await;
        let permit = match permit {
            Ok(Ok(permit)) => permit,
            _ => return Err(failure(format!("all {MAX_CONNECTIONS} connections to it are busy"))),
        };
        let idle = self.0.take_idle();
        let session = match idle {
            Some(session) => session,
            None => match timeout_at(deadline, self.0.open(prepared)).await {
                Ok(session) => session?,
                Err(_) => return Err(failure(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))),
            },
        };
        let until = Instant::now() + OPERATION_TIMEOUT;
        Ok(Connection { session, until, pool: Arc::clone(&self.0), _permit: permit })
    }
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        // nothing panics while it holds this lock
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Session> {
        let mut idle = self.idle();
        idle.retain(|session| !session.is_closed());
        idle.pop()
    }

    /// Connects to the host that accepts writes. One that is frozen, or without power, does not delay the others.
    async fn connect(&self) -> Result<Session, StoreError> {
        let mut attempts: FuturesUnordered<_> = self.hosts.iter().map(|host| self.connect_to(host)).collect();
        let mut failures = Vec::new();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(session) => return Ok(session),
                Err(error) => failures.push(error),
            }
        }
        Err(failure(failures.join("; ")))
    }

    async fn connect_to(&self, (name, host): &(String, Config)) -> Result<Session, String> {
        let connecting = async {
            Ok(match &self.tls {
                Some(tls) => {
                    let (client, connection) = host.connect(tls.clone()).await?;
                    Session::drive(client, connection)
                }
                None => {
                    let (client, connection) = host.connect(NoTls).await?;
                    Session::drive(client, connection)
                }
            })
        };
        let text = match timeout(HOST_TIMEOUT, connecting).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => text_of(&error),
            Err(_) => format!("no connection within {} s", HOST_TIMEOUT.as_secs()),
        };
        Err(if self.hosts.len() > 1 { format!("{name}: {text}") } else { text })
    }

    /// Makes a session, and the tables if they are missing and it is to be prepared.
    async fn open(&self, prepared: bool) -> Result<Session, StoreError> {
        let session = self.connect().await?;
        let of = |error: tokio_postgres::Error| cause(&error);
        let one = async |sql: &str| only(session.query_anew(sql, &[]).await.map_err(of)?);
        session.execute(schema::SESSION).await.map_err(of)?;
        if !prepared {
            return Ok(session);
        }
        let has_tables = async || Ok(one(schema::HAS_VERSION).await?.get::<_, bool>(0));
        if !has_tables().await? {
            session.execute(schema::BEGIN_CREATE).await.map_err(of)?;
            if !has_tables().await? {
                session.execute(schema::CREATE).await.map_err(of)?;
            }
            session.execute("COMMIT").await.map_err(of)?;
        }
        let version: i32 = one(schema::READ_VERSION).await?.get(0);
        if version > schema::VERSION {
            return Err(failure(format!(
                "its tables have version {version}, but this program knows those up to version {}; use the program \
                 that made them, or a newer one",
                schema::VERSION
            )));
        }
        let tag_key = one(schema::READ_TAG_KEY).await?;
        let tag_key: Result<[u8; 32], _> = tag_key.get::<_, &[u8]>(0).try_into();
        self.tag_key.set(tag_key.map_err(|_| failure("its table tag_key has no key of 32 bytes"))?);
        Ok(session)
    }
}

impl Connection {
    /// The rows of the result of a statement, which the session plans once. Its best plan must not depend on what the
    /// tables hold: it has to find rows by their keys.
    ///
    /// # Errors
    /// [`StoreError::Database`]; whether the statement has taken effect is then unknown.
    pub async fn query(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        let rows = timeout_at(self.until, self.session.query(sql, parameters)).await;
        self.checked(rows)
    }

    /// As [`query`](Self::query), and plans the statement for what the tables hold now.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn query_anew(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        let rows = timeout_at(self.until, self.session.query_anew(sql, parameters)).await;
        self.checked(rows)
    }

    fn checked(&self, rows: Result<Result<Vec<Row>, tokio_postgres::Error>, Elapsed>) -> Result<Vec<Row>, StoreError> {
        let rows = rows.map_err(|_| self.no_answer())?.map_err(|error| self.refused(&error))?;
        if self.session.is_warned() {
            return Err(failure("a commit may be missing on its standbys"));
        }
        Ok(rows)
    }

    /// The first row of a statement's result.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn first(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, parameters).await?.into_iter().next())
    }

    /// The only row of a statement's result.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn one(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, StoreError> {
        only(self.query(sql, parameters).await?)
    }

    /// As [`one`](Self::one), and plans the statement for what the tables hold now.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn one_anew(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, StoreError> {
        only(self.query_anew(sql, parameters).await?)
    }

    /// Begins a transaction. If the connection is dropped before the commit, nothing has happened.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        self.query("BEGIN", &[]).await.map(drop)
    }

    /// Commits.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.query("COMMIT", &[]).await.map(drop)
    }

    /// Takes the transaction back.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn roll_back(&mut self) -> Result<(), StoreError> {
        self.query("ROLLBACK", &[]).await.map(drop)
    }

    /// Gives the operation as much time again: it has made progress, and nobody waits for a certain end of it.
    pub fn extend(&mut self) {
        self.until = Instant::now() + OPERATION_TIMEOUT;
    }

    /// How many synchronous standbys are demanded.
    pub fn require_sync(&self) -> i64 {
        self.pool.require_sync
    }

    /// Lets another operation use the connection. Not to be called within a transaction.
    pub fn give_back(self) {
        let Self { session, pool, .. } = self;
        if !session.is_closed() {
            pool.idle().push(session);
        }
    }

    /// The database has not answered. Idle connections lead to the same machine, so all of them are closed, and the
    /// next operation looks for a primary again.
    fn no_answer(&self) -> StoreError {
        self.pool.idle().clear();
        failure(format!("no answer within {} s", OPERATION_TIMEOUT.as_secs()))
    }

    fn refused(&self, error: &tokio_postgres::Error) -> StoreError {
        if error.as_db_error().is_none() || session::is_outdated(error) {
            self.pool.idle().clear();
        }
        cause(error)
    }
}

fn only(rows: Vec<Row>) -> Result<Row, StoreError> {
    rows.into_iter().next().ok_or_else(|| failure("it has returned no row"))
}

/// An error with this text.
pub fn failure(text: impl Into<String>) -> StoreError {
    StoreError::Database(text.into())
}

/// What has gone wrong, with all causes.
fn cause(error: &tokio_postgres::Error) -> StoreError {
    failure(text_of(error))
}

fn text_of(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
