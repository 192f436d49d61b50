//! SQLite with a write-ahead log. A commit that has to be durable runs with `synchronous = FULL`, any other with
//! `NORMAL`, which does not sync.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use rusqlite::Connection;
use user_http_actors::payload::Payload;
use user_http_actors::store::{Change, Durable, NO_RECORD, Seq, Store, StoreError};

use super::{Opened, Read, body, failed, nowhere};

struct Sqlite {
    connection: Connection,
    durable: Durable,
}

/// A connection serves one thread at a time; as many as writers, at most.
struct Reader {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

pub fn open(folder: &Path) -> Result<Opened, Box<dyn Error>> {
    let path = folder.join("messages.sqlite");
    let connection = Connection::open(&path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE messages (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;",
    )?;
    let tidied = path.clone();
    Ok(Opened {
        store: Box::new(Sqlite { connection, durable: Durable::Now }),
        read: Box::new(Reader { path, idle: Mutex::default() }),
        tidy: Box::new(move || {
            let connection = Connection::open(&tidied)?;
            Ok(connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")?)
        }),
    })
}

impl Sqlite {
    fn try_commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, Box<dyn Error>> {
        if durable != self.durable {
            let level = if durable == Durable::Now { "FULL" } else { "NORMAL" };
            self.connection.execute_batch(&format!("PRAGMA synchronous = {level}"))?;
            self.durable = durable;
        }
        let transaction = self.connection.transaction()?;
        let mut puts = Vec::new();
        {
            let mut insert = transaction.prepare_cached("INSERT INTO messages (seq, body) VALUES (?1, ?2)")?;
            let mut remove = transaction.prepare_cached("DELETE FROM messages WHERE seq = ?1")?;
            for change in changes {
                match change {
                    Change::Put(put) => {
                        insert.execute((put.seq as i64, body(put)?.as_ref()))?;
                        puts.push(nowhere());
                    }
                    Change::Remove(seq) => drop(remove.execute([*seq as i64])?),
                }
            }
            if changes.is_empty() {
                // writes a page, so that the commit syncs what was written before
                insert.execute((NO_RECORD as i64, [0_u8; 1]))?;
                remove.execute([NO_RECORD as i64])?;
            }
        }
        transaction.commit()?;
        Ok(puts)
    }
}

impl Store for Sqlite {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        self.try_commit(changes, durable).map_err(failed)
    }
}

impl Read for Reader {
    fn read(&self, seq: Seq, _: Payload) -> Bytes {
        let idle = || self.idle.lock().expect("no reader has panicked");
        let earlier = idle().pop();
        let connection = earlier.unwrap_or_else(|| Connection::open(&self.path).expect("a connection"));
        let read = |row: &rusqlite::Row<'_>| Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?));
        let bytes = connection
            .prepare_cached("SELECT body FROM messages WHERE seq = ?1")
            .and_then(|mut select| select.query_row([seq as i64], read))
            .expect("a message");
        idle().push(connection);
        bytes
    }
}
