//! A copy-on-write B-tree.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use user_http_actors::payload::Payload;
use user_http_actors::store::{Change, Durable, Seq, Store, StoreError};

use super::{Opened, Read, body, failed, nowhere};

const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");

/// Only the compaction locks it exclusively: it takes `&mut`.
type Shared = Arc<RwLock<Database>>;

struct Redb(Shared);

struct Reader(Shared);

pub fn open(folder: &Path) -> Result<Opened, Box<dyn Error>> {
    let database = Database::create(folder.join("messages.redb"))?;
    let first = database.begin_write()?;
    first.open_table(MESSAGES)?;
    first.commit()?;
    let shared = Arc::new(RwLock::new(database));
    Ok(Opened {
        store: Box::new(Redb(Arc::clone(&shared))),
        read: Box::new(Reader(Arc::clone(&shared))),
        tidy: Box::new(move || {
            shared.write().map_err(|error| error.to_string())?.compact()?;
            Ok(())
        }),
    })
}

impl Store for Redb {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let database = self.0.read().map_err(failed)?;
        let mut transaction = database.begin_write().map_err(failed)?;
        let durability = if durable == Durable::Now { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability).map_err(failed)?;
        let mut table = transaction.open_table(MESSAGES).map_err(failed)?;
        let mut puts = Vec::new();
        for change in changes {
            match change {
                Change::Put(put) => {
                    table.insert(put.seq, body(put)?.as_ref()).map_err(failed)?;
                    puts.push(nowhere());
                }
                Change::Remove(seq) => drop(table.remove(*seq).map_err(failed)?),
            }
        }
        drop(table);
        transaction.commit().map_err(failed)?;
        Ok(puts)
    }
}

impl Read for Reader {
    fn read(&self, seq: Seq, _: Payload) -> Bytes {
        let database = self.0.read().expect("no writer has panicked");
        let table = database.begin_read().expect("a transaction").open_table(MESSAGES).expect("the table");
        Bytes::copy_from_slice(table.get(seq).expect("a read").expect("a message").value())
    }
}
