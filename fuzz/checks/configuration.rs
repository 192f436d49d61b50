//! A configuration file of any content is read, or refused with words, and never panics.

use std::fs;

use user_http_server::Config;

pub fn check(data: &[u8]) {
    let path = std::env::temp_dir().join(format!("user-http-server-fuzz-{}.toml", std::process::id()));
    fs::write(&path, data).expect("a temporary file");
    let arguments = ["user-http-server".into(), "--config".into(), path.clone().into_os_string()];
    let config = Config::load(arguments, []);
    fs::remove_file(path).expect("it was written");
    match config {
        Ok(config) => assert!(config.limits.max_body <= u64::from(u32::MAX) && !config.actors.buffer_ttl.is_zero()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
