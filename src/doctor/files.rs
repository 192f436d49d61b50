//! The files that the configuration names: blend roots, secrets, certificates.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::{Finding, absolute, quote};
use crate::Config;
use crate::config::GivenValues;
use crate::tls::Tls;

const BLEND_ROOT: &str = "blend root";
const SECRETS: &str = "secrets";
const CERTIFICATE: &str = "certificate";

/// The settings that name a file with a secret.
const SECRET_FILES: [&str; 4] = ["worker-token-file", "api-token-file", "http-tls-key", "api-tls-key"];

/// How many days before its end a certificate should be replaced.
const RENEW_DAYS: i64 = 14;

pub fn blend_root(root: &Path) -> Vec<Finding> {
    let absolute = absolute(root);
    let word = quote(absolute.display());
    let path = match root.is_relative() {
        true => format!("{} ({} in this folder)", absolute.display(), root.display()),
        false => root.display().to_string(),
    };
    let entries = fs::read_dir(root).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    vec![match entries {
        Ok(entries) => Finding::ok(BLEND_ROOT, format!("{path} can be read and has {} entries", entries.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!(
                "{path} does not exist, and messages with .blend files from it are refused; type: mkdir -p {word}"
            );
            Finding::warning(BLEND_ROOT, text)
        }
        Err(error) => Finding::failed(BLEND_ROOT, format!("{path} cannot be read: {error}"), format!("ls -ld {word}")),
    }]
}

pub fn secrets(values: &[GivenValues]) -> Vec<Finding> {
    let is_given = |key: &str, with: &str| {
        values.iter().any(|given| given.key == key && given.origin.to_string().starts_with(with))
    };
    let files = values.iter().filter(|given| {
        // the URL of the broker has a password
        SECRET_FILES.contains(&given.key) || given.key == "config" && is_given("amqp-url", "file")
    });
    let files: Vec<&String> = files.flat_map(|given| &given.values).collect();
    let mut findings: Vec<_> = files.iter().filter_map(|file| open_to_others(Path::new(file))).collect();
    if is_given("amqp-url", "flag") {
        let text = "the broker's password is on the command line, where every user of this machine can read it; use \
                    USER_HTTP_SERVER_AMQP_URL or a configuration file";
        findings.push(Finding::warning(SECRETS, text));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(SECRETS, format!("{} files with secrets, none of them open to others", files.len())));
    }
    findings
}

/// A file that cannot be read is an error of the configuration.
fn open_to_others(file: &Path) -> Option<Finding> {
    let metadata = fs::metadata(file).ok()?;
    let mode = metadata.mode() & 0o777;
    // A file of root's may be for the service by its group: that is how the Debian package has it.
    let (others, allowed) = if metadata.uid() == 0 { (0o004, "640") } else { (0o044, "600") };
    let (path, word) = (file.display(), quote(file.display()));
    let text =
        format!("{path} has a secret, and other users can read it (mode {mode:04o}); type: chmod {allowed} {word}");
    (mode & others != 0).then(|| Finding::warning(SECRETS, text))
}

pub fn certificates(config: &Config) -> Vec<Finding> {
    let servers = [("worker server", &config.http_tls), ("API server", &config.api_tls)];
    servers.into_iter().filter_map(|(server, tls)| Some(certificate(server, tls.as_ref()?))).collect()
}

fn certificate(server: &str, tls: &Tls) -> Finding {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let days = (tls.expiry() - now).div_euclid(86_400);
    let renew = format!("openssl x509 -noout -enddate -in {}", quote(tls.cert().display()));
    match days {
        ..0 => Finding::failed(CERTIFICATE, format!("that of the {server} has expired; replace it"), renew),
        0..RENEW_DAYS => {
            let text =
                format!("that of the {server} expires in {days} days; replace it, which needs no restart: {renew}");
            Finding::warning(CERTIFICATE, text)
        }
        _ => Finding::ok(CERTIFICATE, format!("that of the {server} is valid for {days} more days")),
    }
}
