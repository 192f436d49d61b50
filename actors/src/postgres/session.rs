//! A session of the database: one connection, and the statements that it has planned.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::stream::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, Error, Row, Statement};

/// A parameter of a statement, with its type.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

pub struct Session {
    client: Client,
    /// The statements that the session has planned, by their text. There are some twenty.
    planned: HashMap<String, Statement>,
    /// Set when the database warns that a commit may not be on the demanded standbys.
    warned: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// Drives a connection on a task of its own, which watches what the database says.
    pub fn drive<S, T>(client: Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let warned = Arc::new(AtomicBool::new(false));
        let warns = Arc::clone(&warned);
        let driving = tokio::spawn(async move {
            let mut messages = poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message
                    && is_doubt(&notice)
                {
                    log::warn!("the database has stopped waiting for its standbys: {}", notice.message());
                    warns.store(true, Ordering::SeqCst);
                }
            }
        });
        Self { client, planned: HashMap::new(), warned, task: driving.abort_handle() }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether the database has warned that a commit may not be on the demanded standbys.
    pub fn is_warned(&self) -> bool {
        self.warned.load(Ordering::SeqCst)
    }

    /// Does statements without parameters, whose results nobody wants.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }

    /// The rows of a statement's result. The session keeps the plan: to make it takes the database longer than to
    /// follow it.
    pub async fn query(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        if !self.planned.contains_key(sql) {
            let types: Vec<Type> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
            let statement = self.client.prepare_typed(sql, &types).await?;
            self.planned.insert(sql.to_owned(), statement);
        }
        let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
        self.client.query(&self.planned[sql], &values).await
    }

    /// As [`query`](Self::query), with a plan for this time only.
    pub async fn query_anew(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        self.client.query_typed(sql, parameters).await
    }
}

/// Whether a notice means that a commit may not be where it is demanded. Its text depends on the language.
fn is_doubt(notice: &DbError) -> bool {
    let codes = [&SqlState::WARNING, &SqlState::ADMIN_SHUTDOWN];
    notice.parsed_severity() == Some(Severity::Warning) && codes.contains(&notice.code())
}

/// Whether the plan of a statement cannot be followed any more: the type of a column has changed since it was made
/// ("cached plan must not change result type"), or the session has forgotten it. Nothing was done then, and other
/// sessions of that age are no better.
pub fn is_outdated(error: &Error) -> bool {
    let codes = [&SqlState::FEATURE_NOT_SUPPORTED, &SqlState::INVALID_SQL_STATEMENT_NAME];
    error.code().is_some_and(|code| codes.contains(&code))
}
