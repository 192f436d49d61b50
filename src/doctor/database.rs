//! The buffer's database: whether it can be reached and used.

use user_http_actors::postgres::PostgresConfig;
use user_http_actors::postgres::probe::{Examination, examine};

use super::Finding;
use crate::Config;

const DATABASE: &str = "database";

pub fn probe(config: &Config) -> Vec<Finding> {
    let Some(database) = &config.actors.shared_buffer else {
        return vec![Finding::ok(DATABASE, "none configured: messages for workers are in the data directory")];
    };
    match examine(database) {
        Ok(found) => findings(database, &found),
        Err(error) => {
            let text = format!("{}: {error}", database.url);
            vec![Finding::failed(DATABASE, text, "pg_isready -h HOST -p PORT (and look into the log of PostgreSQL)")]
        }
    }
}

fn findings(database: &PostgresConfig, found: &Examination) -> Vec<Finding> {
    let PostgresConfig { url, require_sync } = database;
    let mut all = vec![Finding::ok(DATABASE, format!("logged in to {url}, PostgreSQL {}", found.server))];
    all.push(match found.tables {
        Some(version) if found.is_too_new() => {
            let text = format!("its tables have version {version}, which this program does not know");
            Finding::failed(DATABASE, text, "user-http-server --version (and install the version that made them)")
        }
        Some(version) => Finding::ok(DATABASE, format!("its tables have version {version}")),
        None if found.may_create => {
            Finding::ok(DATABASE, "it has no tables yet; the gateway makes them when it starts")
        }
        None => {
            let text = "it has no tables yet, and the role of the gateway may not make them";
            Finding::failed(DATABASE, text, "psql -c 'GRANT CREATE ON DATABASE database TO role'")
        }
    });
    if *require_sync > 0 {
        let (standbys, demanded) = (found.standbys, i64::from(*require_sync));
        let text = format!("{standbys} synchronous standbys are connected, {demanded} are demanded");
        all.push(if standbys >= demanded {
            Finding::ok(DATABASE, text)
        } else if !found.sees_standbys {
            let text = format!("the role of the gateway may not see the standbys: {text}");
            Finding::failed(DATABASE, text, "psql -c 'GRANT pg_monitor TO role'")
        } else {
            Finding::failed(
                DATABASE,
                text,
                "psql -c 'SELECT application_name, state, sync_state FROM pg_stat_replication'",
            )
        });
    }
    all
}
