//! PgBouncer, which keeps sessions of the database for clients to come.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tokio_postgres::NoTls;

use super::harness::eventually;
use crate::ports::free_port;
use crate::postgres::server::{Postgres, new_folder, unprivileged};

/// Where Debian has it.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// It gives each client a session for as long as that is connected, and the next one gets it as it was left. Ends when
/// it is dropped, and when this process ends.
pub struct Pooler {
    port: u16,
    process: Child,
    home: PathBuf,
}

impl Pooler {
    pub async fn start(server: &Postgres) -> Self {
        let (port, home) = (free_port(), new_folder(&std::env::temp_dir()));
        let settings = format!(
            "[databases]\nfarm = host=127.0.0.1 port={} dbname=farm user=farm\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = session\nserver_reset_query =\n",
            server.port
        );
        let path = home.join("pgbouncer.ini");
        fs::write(&path, settings).expect("its settings");
        let mut command = unprivileged(Path::new("setpriv"));
        command.args(["--pdeathsig", "KILL", "--", PROGRAM, "--quiet"]).arg(&path);
        let process = command.stdout(Stdio::null()).spawn().expect("PgBouncer; run ./tests/run once");
        let pooler = Self { port, process, home };
        eventually("it accepts connections", async || pooler.connect().await.ok()).await;
        pooler
    }

    /// The URL of the database behind it.
    pub fn url(&self) -> String {
        format!("postgres://farm@127.0.0.1:{}/farm", self.port)
    }

    async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Does this in one of its sessions, which is free afterwards.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.expect("a session").batch_execute(sql).await.expect(sql);
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}
