//! The tables, which the program makes by itself, and what each session is set to.

/// The version of the tables. A program refuses a database with a greater one.
pub const VERSION: i32 = 1;

/// The most recent version that the database has had; 0 if it has none. Fails if the table is missing.
pub const READ_VERSION: &str = "SELECT coalesce(max(version), 0) FROM schema_version";

/// Whether the tables are there. Not by `to_regclass`, which may answer from the session's cache.
pub const HAS_VERSION: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables
    WHERE schemaname = 'user_http_server' AND tablename = 'schema_version')";

/// For each session, whatever the defaults of the database and of the role are. Acknowledgements mean flushed, and the
/// warning that one may not be must arrive. A statement that waits for another one then sees what that has done, and is
/// not cancelled. A gateway that freezes within a transaction must not keep its locks. A statement that was planned
/// while a table was nearly empty must not read all of it later, so indexes are used even where they seem dearer; the
/// compiler of expressions (JIT) would take that price for that of a long statement. A pooler may give a session to
/// one client after another, with the statements that each has planned.
pub const SESSION: &str = "
    DEALLOCATE ALL;
    SELECT set_config('search_path', 'user_http_server', false),
           set_config('client_min_messages', 'warning', false),
           set_config('default_transaction_isolation', 'read committed', false),
           set_config('statement_timeout', '0', false),
           set_config('lock_timeout', '0', false),
           set_config('idle_in_transaction_session_timeout', '30s', false),
           set_config('enable_seqscan', 'off', false),
           set_config('jit', 'off', false);
    SELECT set_config('synchronous_commit', 'on', false)
     WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')";

/// Begins the transaction that makes the tables. One gateway at a time is in it; the next one looks again whether the
/// tables are there, because to make them again would lock those that are in use.
pub const BEGIN_CREATE: &str = "BEGIN; SELECT pg_advisory_xact_lock(8391460982)";

/// The key with which the gateways name versions of .blend files. It was made with the tables.
pub const READ_TAG_KEY: &str = "SELECT key FROM tag_key";

/// Makes the tables of version 1, in the transaction of [`BEGIN_CREATE`].
///
/// `lease_until`, `epoch`, `owner`, `ending`, `sent_version` and `sent_to` are in no index, so an update of them is
/// heap-only. Bodies are not compressed, so that a part of one can be read by itself. `lingering` has the messages that
/// are gone and whose chunks may be there: until then one that was replaced is still being delivered.
pub const CREATE: &str = "
    CREATE SCHEMA IF NOT EXISTS user_http_server;
    CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY);
    CREATE SEQUENCE IF NOT EXISTS message_ids;
    CREATE TABLE IF NOT EXISTS messages (
        key bytea PRIMARY KEY,
        uuid bytea NOT NULL,
        id bigint NOT NULL UNIQUE,
        length bigint NOT NULL,
        cost bigint NOT NULL,
        sha256 bytea NOT NULL,
        blend_at bigint,
        blend_path bytea,
        fingerprint bytea,
        stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        body bytea,
        lease_until timestamptz NOT NULL DEFAULT '-infinity',
        epoch bigint NOT NULL DEFAULT 0,
        owner bigint NOT NULL DEFAULT 0,
        ending boolean NOT NULL DEFAULT false,
        sent_version text,
        sent_to bigint
    ) WITH (fillfactor = 70);
    ALTER TABLE messages ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE INDEX IF NOT EXISTS messages_stored_at ON messages (stored_at);
    CREATE INDEX IF NOT EXISTS messages_fingerprint ON messages (fingerprint) WHERE fingerprint IS NOT NULL;
    CREATE TABLE IF NOT EXISTS chunks (
        message bigint,
        number integer,
        bytes bytea NOT NULL,
        PRIMARY KEY (message, number)
    );
    ALTER TABLE chunks ALTER COLUMN bytes SET STORAGE EXTERNAL;
    CREATE TABLE IF NOT EXISTS lingering (
        id bigint PRIMARY KEY,
        epoch bigint NOT NULL,
        until timestamptz NOT NULL
    );
    CREATE TABLE IF NOT EXISTS tombstones (fingerprint bytea PRIMARY KEY, gone_at timestamptz NOT NULL);
    CREATE INDEX IF NOT EXISTS tombstones_gone_at ON tombstones (gone_at);
    CREATE TABLE IF NOT EXISTS blend_references (
        sha256 bytea,
        path bytea,
        path_key bytea,
        stamp bytea NOT NULL,
        referred_at timestamptz NOT NULL,
        PRIMARY KEY (sha256, path_key)
    );
    CREATE INDEX IF NOT EXISTS blend_references_referred_at ON blend_references (referred_at);
    CREATE TABLE IF NOT EXISTS tag_key (is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only), key bytea NOT NULL);
    INSERT INTO tag_key (key) VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())))
        ON CONFLICT DO NOTHING;
    CREATE TABLE IF NOT EXISTS totals (
        stripe integer PRIMARY KEY,
        messages bigint NOT NULL DEFAULT 0,
        bytes bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50);
    INSERT INTO totals (stripe) SELECT generate_series(0, 31) ON CONFLICT DO NOTHING;
    INSERT INTO schema_version VALUES (1) ON CONFLICT DO NOTHING";

/// How many rows the totals are spread over, so that transactions seldom wait for one another. Each transaction
/// changes one of them, last.
pub const STRIPES: i32 = 32;
