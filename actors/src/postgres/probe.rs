//! What `doctor` examines of the database, without changing anything there.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::timeout;

use super::connections::Connections;
use super::put::STANDBYS;
use super::{PostgresConfig, schema};
use crate::store::StoreError;

/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What was found in a database that can be reached and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    /// The version of PostgreSQL.
    pub server: String,
    /// The version of the tables; `None` if there are none yet.
    pub tables: Option<i32>,
    /// Whether the gateway may make its tables.
    pub may_create: bool,
    /// How many synchronous standbys are connected, as far as the role may see them.
    pub standbys: i64,
    /// Whether the role may see them all.
    pub sees_standbys: bool,
}

impl Examination {
    /// Whether this program is too old for the tables.
    pub fn is_too_new(&self) -> bool {
        self.tables.is_some_and(|version| version > schema::VERSION)
    }
}

/// Examines a database. Blocks.
///
/// # Errors
/// It cannot be reached, or is a standby.
pub fn examine(config: &PostgresConfig) -> Result<Examination, StoreError> {
    let of_io = |error: std::io::Error| StoreError::Database(error.to_string());
    let runtime = Builder::new_current_thread().enable_all().build().map_err(of_io)?;
    let connections = Connections::new(config).map_err(of_io)?;
    let examined = runtime.block_on(async { timeout(TIMEOUT, look(&connections)).await });
    examined.unwrap_or_else(|_| Err(StoreError::Database(format!("no answer within {} s", TIMEOUT.as_secs()))))
}

async fn look(connections: &Connections) -> Result<Examination, StoreError> {
    let mut connection = connections.get_unprepared().await?;
    let sql = "SELECT current_setting('server_version'), has_database_privilege(current_database(), 'CREATE'),
                      pg_has_role('pg_read_all_stats', 'USAGE')";
    let row = connection.one(sql, &[]).await?;
    let has_tables: bool = connection.one(schema::HAS_VERSION, &[]).await?.get(0);
    let tables = match has_tables {
        true => Some(connection.one(schema::READ_VERSION, &[]).await?.get(0)),
        false => None,
    };
    let standbys = connection.one(STANDBYS, &[]).await?.get(0);
    Ok(Examination { server: row.get(0), tables, may_create: row.get(1), standbys, sees_standbys: row.get(2) })
}
