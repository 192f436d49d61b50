//! An LSM tree that keeps values of 1 KiB or more in files of their own. No compression.

use std::error::Error;
use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use user_http_actors::payload::Payload;
use user_http_actors::store::{Change, Durable, Seq, Store, StoreError};

use super::{Opened, Read, body, failed, nowhere};

struct Fjall {
    database: Database,
    messages: Keyspace,
}

struct Reader(Keyspace);

pub fn open(folder: &Path) -> Result<Opened, Box<dyn Error>> {
    let database = Database::builder(folder.join("fjall")).open()?;
    let options = || KeyspaceCreateOptions::default().with_kv_separation(Some(KvSeparationOptions::default()));
    let messages = database.keyspace("messages", options)?;
    let tidied = messages.clone();
    Ok(Opened {
        read: Box::new(Reader(messages.clone())),
        store: Box::new(Fjall { database, messages }),
        tidy: Box::new(move || {
            tidied.rotate_memtable_and_wait()?;
            Ok(tidied.major_compact()?)
        }),
    })
}

impl Store for Fjall {
    fn commit(&mut self, changes: &[Change], durable: Durable) -> Result<Vec<Payload>, StoreError> {
        let mut batch = self.database.batch();
        let mut puts = Vec::new();
        for change in changes {
            match change {
                Change::Put(put) => {
                    batch.insert(&self.messages, put.seq.to_be_bytes(), body(put)?.as_ref());
                    puts.push(nowhere());
                }
                Change::Remove(seq) => batch.remove(&self.messages, seq.to_be_bytes()),
            }
        }
        batch.commit().map_err(failed)?;
        let mode = if durable == Durable::Now { PersistMode::SyncData } else { PersistMode::Buffer };
        self.database.persist(mode).map_err(failed)?;
        Ok(puts)
    }
}

impl Read for Reader {
    fn read(&self, seq: Seq, _: Payload) -> Bytes {
        let value = self.0.get(seq.to_be_bytes()).expect("a read").expect("a message");
        Bytes::copy_from_slice(&value)
    }
}
