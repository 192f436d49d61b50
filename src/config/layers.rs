//! Collects the values of settings: flags override the environment, which overrides the file, which overrides the
//! defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};

use super::error::ConfigError;
use super::setting::{Declaration, Kind, PREFIX, Setting};

/// The flag that names the file. The environment variable is [`PREFIX`] and this in capitals.
const CONFIG: &str = "config";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// The values that were given for a setting.
struct Given {
    /// One text per value.
    texts: Vec<String>,
    origin: Origin,
}

/// The given values of the settings, by key. Settings without one have their defaults.
pub struct Layers {
    given: BTreeMap<&'static str, Given>,
    /// Every file that any layer names, even if another layer overrides it, because it may still hold a secret.
    files: Vec<PathBuf>,
}

impl Layers {
    /// Reads all layers. The flag or variable `config` names the file. Unknown variables are logged.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(
        settings: &'static [Declaration],
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self { given: BTreeMap::new(), files: Vec::new() };
        let flags = command(settings).try_get_matches_from(args).map_err(ConfigError::CommandLine)?;
        let variables = Variables::read(settings, environment)?;
        let config_flag = flags.get_one::<String>(CONFIG);
        layers.files.extend(config_flag.into_iter().chain(&variables.config).map(PathBuf::from));
        if let Some(file) = config_flag.or(variables.config.as_ref()) {
            layers.read_file(settings, Path::new(file))?;
        }
        for setting in settings {
            if let Some(value) = variables.values.get(setting.key) {
                let texts = match setting.kind {
                    Kind::Many(split) => split(value),
                    Kind::One | Kind::Switch => vec![value.clone()],
                };
                layers.insert(setting, texts, Origin::Environment);
            }
            let texts = match setting.kind {
                Kind::Switch => flags.get_flag(setting.key).then(|| vec!["true".to_owned()]),
                Kind::One | Kind::Many(_) => flags.get_many(setting.key).map(|texts| texts.cloned().collect()),
            };
            if let Some(texts) = texts {
                layers.insert(setting, texts, Origin::Flag);
            }
        }
        Ok(layers)
    }

    /// Sets a setting. Returns whether it overrides another value.
    fn insert(&mut self, setting: &Declaration, texts: Vec<String>, origin: Origin) -> bool {
        if setting.is_file() {
            self.files.extend(texts.iter().map(PathBuf::from));
        }
        self.given.insert(setting.key, Given { texts, origin }).is_some()
    }

    fn read_file(&mut self, settings: &'static [Declaration], path: &Path) -> Result<(), ConfigError> {
        let unreadable = |why: String| ConfigError::File(path.to_owned(), why);
        if path.as_os_str().is_empty() {
            return Err(unreadable(format!("its name is empty; give --{CONFIG} the path of a file, or leave it out")));
        }
        let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        // Not the whole error of the parser: it quotes the line, which may hold a password.
        let table: toml::Table = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            unreadable(format!("line {line}: {}", error.message()))
        })?;
        for (key, value) in table {
            let name = key.replace('_', "-");
            let Some(setting) = settings.iter().find(|setting| setting.key == name) else {
                let known: Vec<_> = settings.iter().map(|setting| setting.key).collect();
                let nearest = nearest(&name, known.iter().copied());
                return Err(ConfigError::UnknownKey { key, file: path.to_owned(), nearest, known });
            };
            let bad = |why: &str| ConfigError::BadValue {
                given: format!("{key} in {}", path.display()),
                why: why.to_owned(),
            };
            let texts = match value {
                toml::Value::Array(array) if matches!(setting.kind, Kind::Many(_)) => {
                    array.iter().map(scalar).collect()
                }
                ref value => scalar(value).map(|text| vec![text]),
            };
            let texts: Vec<String> = texts.ok_or_else(|| {
                bad(match setting.kind {
                    Kind::Many(_) => "expected a string or an array of strings",
                    Kind::One => "expected a string or a number",
                    Kind::Switch => "expected true or false",
                })
            })?;
            if texts.is_empty() {
                return Err(bad("it is empty; give a value, or leave the setting out"));
            }
            if self.insert(setting, texts, Origin::File(path.to_owned())) {
                return Err(bad("it is given twice, once with _ and once with -"));
            }
        }
        Ok(())
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`], also if there is neither a value nor a default.
    pub fn one<T>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        let value = self.optional(setting)?;
        value.ok_or_else(|| self.bad_value(setting, "expected a value".to_owned()))
    }

    /// The value of a setting; `None` if there is neither a value nor a default.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`].
    pub fn optional<T>(&self, setting: &Setting<T>) -> Result<Option<T>, ConfigError> {
        Ok(self.many(setting)?.into_iter().next())
    }

    /// All values of a setting.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`].
    pub fn many<T>(&self, setting: &Setting<T>) -> Result<Vec<T>, ConfigError> {
        let declaration = setting.declaration();
        let (texts, origin) = self.texts(declaration);
        let parse = |text: &&str| setting.parse(text).map_err(|why| bad_value(declaration, text, origin, why));
        texts.iter().map(parse).collect()
    }

    /// All values of a setting. Each that was given must pass `check`; a default need not.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`], with the text of `check`.
    pub fn many_checked<T>(
        &self,
        setting: &Setting<T>,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Result<Vec<T>, ConfigError> {
        let values = self.many(setting)?;
        let (texts, origin) = self.texts(setting.declaration());
        if *origin != Origin::Default {
            for (value, text) in values.iter().zip(texts) {
                check(value).map_err(|why| bad_value(setting.declaration(), text, origin, why))?;
            }
        }
        Ok(values)
    }

    /// Every file that any layer names, the configuration file included.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The error for a value that can be parsed but not used.
    pub fn bad_value<T>(&self, setting: &Setting<T>, why: String) -> ConfigError {
        let (texts, origin) = self.texts(setting.declaration());
        bad_value(setting.declaration(), texts.first().copied().unwrap_or_default(), origin, why)
    }

    fn texts(&self, setting: Declaration) -> (Vec<&str>, &Origin) {
        match self.given.get(setting.key) {
            Some(given) => (given.texts.iter().map(String::as_str).collect(), &given.origin),
            None if setting.default.is_empty() => (Vec::new(), &Origin::Default),
            None => (vec![setting.default], &Origin::Default),
        }
    }
}

fn bad_value(setting: Declaration, text: &str, origin: &Origin, why: String) -> ConfigError {
    let value = if setting.secret { "(not shown)".to_owned() } else { format!("{text:?}") };
    let given = match origin {
        Origin::Flag => format!("--{} {value} on the command line", setting.key),
        Origin::Environment => format!("{}={value} in the environment", setting.variable()),
        Origin::File(path) => format!("{} = {value} in {}", setting.key, path.display()),
        Origin::Default => format!("--{} {value} by default", setting.key),
    };
    ConfigError::BadValue { given, why }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The command line.
fn command(settings: &[Declaration]) -> Command {
    let config = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .help(format!("TOML file with these settings as keys, such as max-body = \"64MiB\"\n[env: {PREFIX}CONFIG]"));
    Command::new("user-http-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("HTTP gateway of a Blender render farm: serves until SIGTERM or Ctrl-C")
        .override_usage("user-http-server [OPTIONS]\n       user-http-server token")
        .next_line_help(true)
        .after_help(
            "Flags override the environment, which overrides the file, which overrides the defaults.\n\
             A SIZE is 500KB, 64MiB or 1GiB, a DURATION 10s, 15m or 24h. RUST_LOG filters the log (RUST_LOG=warn).\n\
             SIGHUP reloads tokens and certificates. `user-http-server token` prints a new bearer token.",
        )
        .args(settings.iter().map(Declaration::arg))
        .arg(config)
}

/// The environment variables of this program.
struct Variables {
    /// By the key of the setting.
    values: BTreeMap<&'static str, String>,
    /// The path of the configuration file.
    config: Option<String>,
}

impl Variables {
    fn read(
        settings: &'static [Declaration],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut variables = Self { values: BTreeMap::new(), config: None };
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let key = name[PREFIX.len()..].replace('_', "-").to_lowercase();
            if key == CONFIG {
                variables.config = Some(value.to_string_lossy().into_owned()).filter(|file| !file.is_empty());
                continue;
            }
            let Some(setting) = settings.iter().find(|setting| setting.key == key) else {
                log::warn!("{}", unknown_variable(settings, name, &key));
                continue;
            };
            let Ok(value) = value.into_string() else {
                let why = "expected text in UTF-8".to_owned();
                return Err(bad_value(*setting, "(not UTF-8)", &Origin::Environment, why));
            };
            // In a shell or a unit file, an empty variable usually means that it is not set.
            if setting.guarded || !value.is_empty() {
                variables.values.insert(setting.key, value);
            }
        }
        Ok(variables)
    }
}

/// The log line for a variable that is not a setting. Kubernetes sets such variables; their names begin with the name
/// of a Service. The value is not shown, because the variable may be a misspelled secret.
fn unknown_variable(settings: &'static [Declaration], name: &str, key: &str) -> String {
    let known = settings.iter().map(|setting| setting.key).chain([CONFIG]);
    let nearest = nearest(key, known).replace('-', "_").to_uppercase();
    let unknown = format!("{name:?} in the environment is ignored: there is no such setting");
    let is_a_services = name.ends_with("_PORT")
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_");
    let hint = if is_a_services {
        "; Kubernetes sets it for a Service of that name, unless the pod has enableServiceLinks: false"
    } else {
        ""
    };
    format!("{unknown}; did you mean {PREFIX}{nearest}?{hint}")
}

/// The member of `known`, which must not be empty, that is most similar to `key`.
fn nearest(key: &str, known: impl Iterator<Item = &'static str>) -> &'static str {
    let likeness = |known: &str| strsim::jaro_winkler(key, known);
    known.max_by(|one, other| likeness(one).total_cmp(&likeness(other))).unwrap_or_default()
}
