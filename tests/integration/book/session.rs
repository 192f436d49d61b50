//! A document of the book as its reader follows it: its blocks one after the other, in a folder of their own, with a
//! network of their own, so that the ports in the book are free.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::markdown::{Block, Document, Mark, in_repository};
use crate::harness::{example, outside_cargo, python};

/// What a document runs beside the gateway.
#[derive(Clone, Copy, PartialEq)]
pub enum Beside {
    Nothing,
    /// RabbitMQ, on its usual port.
    RabbitMq,
}

/// Longer than any document takes on a busy machine, in seconds.
const DEADLINE: &str = "400";

/// `cargo run` without a build: the tests have built everything. Named `cargo`, in front of the real one.
const CARGO: &str = r#"#!/usr/bin/env bash
program=user-http-server
[[ $1 == run ]] || { echo "this cargo only runs: $*" >&2; exit 2; }
shift
while (($#)); do
    case $1 in
        --release) shift ;;
        --example) program=examples/$2; shift 2 ;;
        --) shift; break ;;
        *) echo "this cargo knows no $1" >&2; exit 2 ;;
    esac
done
exec "$BOOK_PROGRAMS/$program" "$@"
"#;

/// The functions that the blocks of a document are run with.
const PROLOGUE: &str = r#"
set -eu
exec </dev/null 2>&1 3>&1
ip link set lo up
declare -A SERVERS=()
OUTPUT=/dev/null
trap '(($? == 0)) || { cat "$OUTPUT"; tail -n 40 "$BOOK"/*.log || true; } >&3' EXIT

until_port() { # PORT PID LOG
    until (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
        kill -0 "$2" || { echo "nothing listens on port $1" >&2; exit 1; }
        sleep 0.05
    done
}

serve() { # PORT SCRIPT
    if [[ -n ${SERVERS[$1]-} ]]; then
        kill -s TERM -- "-${SERVERS[$1]}"
        # the group, because the shell at its head ends before the server does
        while kill -s 0 -- "-${SERVERS[$1]}" 2>/dev/null; do sleep 0.05; done
    fi
    setsid bash -eu "$2" >"$2.log" 2>&1 &
    SERVERS[$1]=$!
    until_port "$1" "${SERVERS[$1]}"
}
"#;

/// A broker with its defaults. Debian's wrappers in `/usr/sbin` would change to the user `rabbitmq`.
const RABBITMQ: &str = r#"
export PATH=/usr/lib/rabbitmq/bin:$PATH HOME=$BOOK LANG=C.UTF-8 RABBITMQ_NODENAME=rabbit@localhost
export RABBITMQ_MNESIA_BASE=$BOOK/mnesia RABBITMQ_LOG_BASE=$BOOK/rabbitmq RABBITMQ_PID_FILE=$BOOK/rabbitmq.pid
export RABBITMQ_ENABLED_PLUGINS_FILE=$BOOK/plugins RABBITMQ_CONFIG_FILE=$BOOK/rabbitmq.conf
export RABBITMQ_CONF_ENV_FILE=$BOOK/rabbitmq-env.conf RABBITMQ_ADVANCED_CONFIG_FILE=$BOOK/advanced.config
echo '[].' >"$RABBITMQ_ENABLED_PLUGINS_FILE"
cat >"$RABBITMQ_CONFIG_FILE" <<'END'
disk_free_limit.absolute = 1MB
vm_memory_calculation_strategy = allocated
total_memory_available_override_value = 4GB
END
touch "$RABBITMQ_CONF_ENV_FILE"
# RabbitMQ starts two programs that would make it at the same time, and one would find it half made
(umask 077 && echo book >"$HOME/.erlang.cookie")
rabbitmq-server >"$BOOK/rabbitmq.log" 2>&1 &
until_port 5672 $!
"#;

/// Runs the blocks of a document, and compares what they print with what the document shows.
pub fn run(path: &str, beside: Beside) {
    let document = Document::read(path);
    let folder = tempfile::Builder::new().prefix("uhs-book-").tempdir().expect("a folder for the document");
    let [shims, work, book] = ["shims", "work", "book"].map(|name| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        folder
    });
    let cargo = shims.join("cargo");
    fs::write(&cargo, CARGO).expect("a program");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("a program");
    // what readers have who are in the repository
    for name in ["deploy", "examples"] {
        symlink(in_repository(name), work.join(name)).expect("a link");
    }
    let script = folder.path().join("script");
    fs::write(&script, script_of(&document, beside, &book)).expect("a script");

    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", DEADLINE, "unshare", "--user", "--map-root-user", "--net", "--pid", "--fork"]);
    command.args(["--kill-child", "bash"]).arg(&script);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = text.starts_with("USER_HTTP_SERVER_") || text.starts_with("RUST_LOG");
        if foreign || text.to_lowercase().ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
    let program = Path::new(env!("CARGO_BIN_EXE_user-http-server"));
    let programs = program.parent().expect("the folder of the programs");
    if document.text.contains("--example ") {
        // builds them
        drop(example("worker"));
    }
    let python = python();
    let folders = [shims.as_path(), programs, python.parent().expect("the folder of Python")];
    let before = std::env::var_os("PATH").expect("PATH");
    let paths = folders.into_iter().map(Path::to_owned).chain(std::env::split_paths(&before));
    command.env("PATH", std::env::join_paths(paths).expect("paths without colons"));
    command.env("BOOK_PROGRAMS", programs).env("BOOK", &book).env("PYTHONDONTWRITEBYTECODE", "1");
    outside_cargo(&mut command).current_dir(&work).stdin(Stdio::null());

    let output = command.output().expect("timeout and unshare");
    let printed = [output.stderr, output.stdout].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
    assert!(output.status.success(), "{path}: {}; the last block below failed\n{printed}", output.status);
    for [before, block] in document.blocks.windows(2).filter_map(|pair| pair.first_chunk::<2>()) {
        if block.marks.contains(&Mark::Output) {
            let found = fs::read_to_string(book.join(before.line.to_string())).unwrap_or_else(|error| {
                panic!("{path}:{}: the block before an output must be one that runs: {error}", block.line)
            });
            let found = found.replace('\r', "");
            assert!(is_like(&found, &block.text), "{path}:{}: printed was\n{found}\n{printed}", block.line);
        }
    }
}

/// Whether a text is like another one, in which `…` stands for anything.
fn is_like(found: &str, shown: &str) -> bool {
    let parts: Vec<&str> = shown.trim().split('…').collect();
    let [first, middle @ .., last] = &parts[..] else { return found.trim() == shown.trim() };
    let Some(mut rest) = found.trim().strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The blocks of a document as one script for bash.
fn script_of(document: &Document, beside: Beside, book: &Path) -> String {
    let mut script = PROLOGUE.to_owned();
    if beside == Beside::RabbitMq {
        script += RABBITMQ;
    }
    for block in &document.blocks {
        let Block { line, text, .. } = block;
        let mut part = String::new();
        for mark in &block.marks {
            match mark {
                Mark::File(name) => {
                    part += "mkdir -p \"$(dirname 'NAME')\" && cat >'NAME' <<'END_OF_BLOCK'\n"
                        .replace("NAME", name)
                        .as_str();
                    let _ = writeln!(part, "{text}END_OF_BLOCK");
                }
                Mark::Serve(port) => {
                    let file = book.join(format!("serve-{line}"));
                    fs::write(&file, text).expect("a script");
                    let _ = writeln!(part, "serve {port} '{}'", file.display());
                }
                Mark::Run => {
                    let output = book.join(line.to_string());
                    let output = output.display();
                    let _ = writeln!(part, "OUTPUT='{output}'");
                    let _ = match block.language.as_str() {
                        "sh" => writeln!(part, "{{\n{text}}} >'{output}'"),
                        "python" => writeln!(part, "python3 - >'{output}' <<'END_OF_BLOCK'\n{text}END_OF_BLOCK"),
                        language => panic!("{}:{line}: nothing runs {language:?}", document.path),
                    };
                    let _ = writeln!(part, "cat '{output}'; OUTPUT=/dev/null");
                }
                Mark::Output | Mark::Same(_) | Mark::By(_) | Mark::Figure => {}
            }
        }
        if !part.is_empty() {
            let _ = writeln!(script, "echo '== {}:{line}'\n{part}", document.path);
        }
    }
    script
}

#[test]
fn an_ellipsis_in_an_output_stands_for_anything_and_all_else_for_itself() {
    for (found, shown) in [
        ("a\nb\n", "a\nb"),
        ("{\"TIME\": 17.5}\n", "{\"TIME\": …}"),
        ("a b c b c", "a … b c"),
        ("head\nmany\nlines\n", "head\n…"),
        ("many lines, tail", "…, tail"),
    ] {
        assert!(is_like(found, shown), "{found:?} {shown:?}");
    }
    for (found, shown) in
        [("a\nb", "a"), ("b", "a"), ("{\"TIME\": 17.5", "{\"TIME\": …}"), ("a c", "a b … c"), ("tail.", "…tail")]
    {
        assert!(!is_like(found, shown), "{found:?} {shown:?}");
    }
}
