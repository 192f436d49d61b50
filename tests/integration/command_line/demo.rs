//! `user-http-server demo`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use tempfile::TempDir;

use crate::harness::{Ended, Program, SOON, eventually, gateway, holds, request};

const PICTURE: &[u8] = include_bytes!("../../../src/cli/demo/picture.png");

/// The folders of a demo: one to run in, one for temporary files, and one for a program `blender`.
struct Demo {
    folder: TempDir,
}

impl Demo {
    fn new() -> Self {
        let demo = Self { folder: tempfile::Builder::new().prefix("uhs-demo-").tempdir().expect("a folder") };
        for name in ["here", "temporary", "bin"] {
            fs::create_dir(demo.path(name)).expect("a folder");
        }
        demo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Installs a script as Blender.
    fn blender(self, script: &str) -> Self {
        let path = self.path("bin/blender");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file of the test's own");
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = gateway(&["demo"]);
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        command.args(args).current_dir(self.path("here")).env("TMPDIR", self.path("temporary")).env("PATH", path);
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Program::start(&mut self.command(args)).end()
    }

    /// The frame of this name.
    fn frame(&self, name: &str) -> Vec<u8> {
        fs::read(self.path("here").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.path("temporary")).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[track_caller]
fn assert_success(ended: &Ended) {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

/// The address of the status page, as printed.
fn page_of(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("status page  ")?;
    rest.split(' ').next().map(str::to_owned)
}

#[test]
fn a_frame_goes_through_the_farm_and_is_saved_without_blender() {
    let demo = Demo::new();
    let ended = demo.run(&["--no-blender"]);
    assert_success(&ended);
    for number in 1..=7 {
        let step = format!("{number}. ");
        assert!(ended.stdout.lines().any(|line| line.starts_with(&step)), "no step {number}: {ended:?}");
    }
    assert!(page_of(&ended.stdout).is_some_and(|page| page.starts_with("http://127.0.0.1:")), "{ended:?}");
    assert_eq!(demo.frame("demo-frame.png"), PICTURE);
    assert!(ended.stdout.contains(&demo.path("here/demo-frame.png").display().to_string()), "{ended:?}");
    demo.assert_nothing_is_left();
}

#[test]
fn a_file_that_is_there_already_is_not_overwritten() {
    let demo = Demo::new();
    fs::write(demo.path("here/demo-frame.png"), "mine").expect("a file");
    assert_success(&demo.run(&["--no-blender"]));
    assert_eq!((demo.frame("demo-frame.png"), demo.frame("demo-frame-2.png")), (b"mine".to_vec(), PICTURE.to_vec()));
    let ended = demo.run(&["--no-blender", "--frame", "demo-frame.png"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("demo-frame.png: the file exists"), "{ended:?}");
    assert_success(&demo.run(&["--no-blender", "--frame", "other.png"]));
    assert_eq!(demo.frame("other.png"), PICTURE);
    let ended = demo.run(&["--no-blender", "--frame", "no/such/folder.png"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("no/such/folder.png"), "{ended:?}");
    demo.assert_nothing_is_left();
}

#[test]
fn names_of_folders_reach_the_terminal_without_control_characters() {
    let demo = Demo::new();
    let [temporary, here] = ["tempo\u{1b}[2Jrary\nof mine", "here\u{1b}]0;mine\u{7}"].map(|name| demo.path(name));
    for folder in [&temporary, &here] {
        fs::create_dir(folder).expect("a folder");
    }
    let mut command = demo.command(&["--no-blender"]);
    let ended = Program::start(command.env("TMPDIR", &temporary).current_dir(&here)).end();
    assert_success(&ended);
    assert!(!ended.stdout.contains(|char: char| char.is_control() && char != '\n'), "{ended:?}");
    for part in
        ["/tempo\\u001b[2Jrary\\u000aof mine/user-http-server-demo-", "/here\\u001b]0;mine\\u0007/demo-frame.png"]
    {
        assert!(ended.stdout.contains(part), "{part}: {ended:?}");
    }
    // each step and each address is on a line of its own
    assert!(ended.stdout.contains("\n\nThe frame is in "), "{ended:?}");
    assert!(fs::read_dir(&temporary).expect("a folder").next().is_none());
}

#[test]
fn settings_of_a_gateway_in_use_play_no_part() {
    let demo = Demo::new();
    let mut command = demo.command(&["--no-blender"]);
    command.env("USER_HTTP_SERVER_AMQP_URL", "amqp://127.0.0.1:1").env("USER_HTTP_SERVER_CONFIG", "/no/such/file");
    assert_success(&Program::start(&mut command).end());
    demo.assert_nothing_is_left();
}

#[test]
fn blender_renders_what_the_worker_has_fetched() {
    // makes the scene that it is asked for, and renders the bytes of the scene
    let script = r#"
        for last; do :; done
        case " $* " in
            *" --python "*) printf 'the scene' >"$last" ;;
            *) cp "$3" "$(echo "$*" | sed 's/.*--render-output \([^ ]*\)rendered_####.*/\1/')rendered_0001.png" ;;
        esac"#;
    let demo = Demo::new().blender(script);
    let ended = demo.run(&[]);
    assert_success(&ended);
    assert_eq!(demo.frame("demo-frame.png"), b"the scene", "{ended:?}");
    assert!(!ended.stdout.contains("built-in"), "{ended:?}");
    demo.assert_nothing_is_left();
}

#[test]
fn a_blender_that_fails_is_replaced_by_the_built_in_picture() {
    for (script, step) in [
        ("exit 1", "2. Blender has failed"),
        ("exit 0", "2. Blender has made no scene"),
        (
            "for last; do :; done; case \" $* \" in *' --python '*) echo scene >\"$last\" ;; *) exit 3 ;; esac",
            "Blender has failed",
        ),
    ] {
        let demo = Demo::new().blender(script);
        let ended = demo.run(&[]);
        assert_success(&ended);
        assert!(ended.stdout.contains(step) && ended.stdout.contains("built-in picture"), "{ended:?}");
        assert_eq!(demo.frame("demo-frame.png"), PICTURE);
        demo.assert_nothing_is_left();
    }
}

/// A demo whose output is read while it runs.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    text: String,
}

impl Running {
    fn start(demo: &Demo, args: &[&str]) -> Self {
        let mut command = demo.command(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the demo");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdout, text: String::new() }
    }

    /// Reads up to a line with this text.
    #[track_caller]
    fn read_to(&mut self, part: &str) {
        while !self.text.contains(part) {
            let read = self.stdout.read_line(&mut self.text).expect("UTF-8");
            assert!(read > 0, "no {part:?} in {:?}", self.text);
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "SIG{name}");
    }

    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let status = eventually("the end of the demo", SOON, || {
            self.child.try_wait().expect("a status").ok_or_else(|| self.text.clone())
        });
        self.stdout.read_to_string(&mut self.text).expect("UTF-8");
        (status, std::mem::take(&mut self.text))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // these fail only if it has already ended
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_stays_until_ctrl_c_if_it_is_told_to() {
    let demo = Demo::new();
    let mut running = Running::start(&demo, &["--no-blender", "--keep"]);
    running.read_to("Ctrl-C");
    let page = page_of(&running.text).expect("the address of the status page");
    let address = page.trim_start_matches("http://").trim_end_matches('/').parse().expect("an address");
    assert_eq!(request(address, "GET", "/", &[], b"").status, 200);
    let status = request(address, "GET", "/status", &[], b"").json();
    assert_eq!((&status["totals"]["delivered"], &status["totals"]["forwarded"]), (&1.into(), &2.into()), "{status}");
    running.signal("INT");
    let (status, _) = running.end();
    assert!(status.success(), "{status}");
    assert_eq!(demo.frame("demo-frame.png"), PICTURE);
    demo.assert_nothing_is_left();
}

#[test]
fn on_a_terminal_it_stays_until_ctrl_c() {
    let demo = Demo::new();
    let mut direct = demo.command(&["--no-blender"]);
    let program = direct.get_program().to_string_lossy().into_owned();
    // A terminal around the demo; what is written to it is typed. The shell gives way to the demo: some shells would
    // fail after a Ctrl-C whatever the demo does.
    let mut terminal = Command::new("script");
    terminal.args([
        "--quiet",
        "--return",
        "--flush",
        "--command",
        &format!("exec {program} demo --no-blender"),
        "/dev/null",
    ]);
    terminal.current_dir(demo.path("here")).env("TMPDIR", demo.path("temporary")).env("SHELL", "/bin/sh");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script");
    let mut keyboard = child.stdin.take().expect("a pipe");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut running = Running { child, stdout, text: String::new() };
    running.read_to("end it with Ctrl-C");
    keyboard.write_all(b"\x03").expect("a terminal");
    let (status, text) = running.end();
    assert!(status.success(), "{status}: {text}");
    demo.assert_nothing_is_left();
    // and not without a terminal
    assert_eq!(direct.output().expect("the demo").status.code(), Some(0));
}

#[test]
fn a_signal_in_the_middle_ends_it_and_blender_and_removes_everything() {
    for signal in ["INT", "TERM", "HUP"] {
        // a script that waits for a program of its own, as wrappers of Blender do
        let demo = Demo::new().blender("echo $$ >\"$0.pid\"; sleep 600; echo never");
        let mut running = Running::start(&demo, &[]);
        running.read_to("2. Blender");
        let group = eventually("Blender has started", SOON, || {
            let text = fs::read_to_string(demo.path("bin/blender.pid")).unwrap_or_default();
            text.trim().parse::<u32>().map_err(|_| text)
        });
        running.signal(signal);
        let (status, text) = running.end();
        assert_eq!(status.code(), Some(1), "SIG{signal}: {text}");
        eventually("Blender and what it has started are gone", SOON, || {
            let left = members_of(group);
            holds(left.is_empty(), left)
        });
        assert!(!demo.path("here/demo-frame.png").exists());
        demo.assert_nothing_is_left();
    }
}

/// The processes of a group that have not ended.
fn members_of(group: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let stat = |process: PathBuf| fs::read_to_string(process.join("stat")).ok();
    let is_member = |stat: &String| {
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.get(2) == Some(&group.to_string().as_str()) && fields.first() != Some(&"Z")
    };
    processes.filter(|path| is_number(path)).filter_map(stat).filter(is_member).collect()
}

fn is_number(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}
