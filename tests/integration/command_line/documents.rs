//! `user-http-server completions` and `man`: what packages install.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::{Ended, Program, gateway};

fn run(args: &[&str]) -> Ended {
    let ended = Program::start(&mut gateway(args)).end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    ended
}

#[test]
fn completions_know_every_subcommand_and_flag_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&["completions", shell]).stdout;
        for word in
            ["user-http-server", "check", "healthcheck", "messages", "publish", "data-dir", "json", "completions"]
        {
            assert!(script.contains(word), "{shell}: no {word:?} in {script}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("completions.bash");
    fs::write(&script, run(&["completions", "bash"]).stdout).expect("a file");
    let complete = format!(
        "source {} && function=$(complete -p user-http-server | sed 's/.*-F \\([^ ]*\\) .*/\\1/') && \
         COMP_WORDS=(user-http-server healthc) COMP_CWORD=1 && \
         \"$function\" user-http-server healthc user-http-server && echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let output = Command::new("bash").args(["-c", &complete]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "healthcheck", "{output:?}");
}

#[test]
fn the_manual_page_is_sound_and_has_every_subcommand_and_every_setting() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("user-http-server.1");
    fs::write(&page, run(&["man"]).stdout).expect("a file");
    let output = Command::new("groff").args(["-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou"]).arg(&page).output();
    let output = output.expect("groff, of Debian's package groff-base");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let help = run(&["--help"]).stdout;
    let flags = help.lines().filter_map(|line| line.trim().strip_prefix("--"));
    let flags: Vec<_> = flags.map(|line| format!("--{}", line.split(' ').next().unwrap_or_default())).collect();
    assert!(flags.len() > 30, "{help}");
    let commands =
        ["check", "healthcheck [URL]", "messages list", "messages show <ID>", "completions <SHELL>", "demo", "token"];
    for part in flags.iter().map(String::as_str).chain(commands).chain(["EXIT STATUS", "RUST_LOG", "--token-file"]) {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert_eq!(text.matches("--max-body").count(), 1, "the settings are there once:\n{text}");
}

#[test]
fn a_reader_that_is_gone_is_no_error() {
    for (args, code) in [
        (&["man"][..], 0),
        (&["completions", "zsh"], 0),
        (&["check", "--memory"], 0),
        // a token that nobody has read is lost
        (&["token"], 1),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = gateway(args).stdout(writer).stderr(Stdio::piped()).output().expect("the program");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_shell_that_is_missing_is_a_wrong_command_line() {
    let ended = Program::start(&mut gateway(&["completions"])).end();
    assert!(ended.code == Some(2) && ended.stderr.contains("SHELL"), "{ended:?}");
}
