//! Where the value of a setting comes from: flags beat the environment, that beats the file, that beats the default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};

/// What the environment variables begin with.
const PREFIX: &str = "USER_HTTP_SERVER_";

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    key: &'static str,
    value_name: &'static str,
    default: &'static str,
    help: &'static str,
    kind: Kind,
    secret: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One,
    Many,
    Switch,
}

impl Setting {
    pub const fn new(key: &'static str, value_name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { key, value_name, default, help, kind: Kind::One, secret: false }
    }

    /// It may have several values.
    pub const fn many(self) -> Self {
        Self { kind: Kind::Many, ..self }
    }

    /// Its flag takes no value.
    pub const fn switch(self) -> Self {
        Self { kind: Kind::Switch, ..self }
    }

    /// Its value is never shown.
    pub const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('-', "_").to_uppercase())
    }

    fn arg(&self) -> Arg {
        let default = if self.default.is_empty() || self.kind == Kind::Switch {
            String::new()
        } else {
            format!(" [default: {}]", self.default)
        };
        let arg = Arg::new(self.key).long(self.key).help(format!("{}{default} [env: {}]", self.help, self.variable()));
        match self.kind {
            Kind::One => arg.value_name(self.value_name),
            Kind::Many => arg.value_name(self.value_name).action(ArgAction::Append),
            Kind::Switch => arg.action(ArgAction::SetTrue),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The command line cannot be read, or asks for help: clap's own answer.
    CommandLine(clap::Error),
    /// The file cannot be read.
    File(PathBuf, String),
    /// A key, in the environment or the file, that is no setting.
    UnknownKey {
        /// The key.
        key: String,
        /// Where it stands.
        origin: String,
        /// What would be accepted.
        known: Vec<String>,
    },
    /// A value that is not accepted.
    BadValue {
        /// Setting, value and origin, as the user wrote them.
        place: String,
        /// What is wrong with it, or what would be accepted.
        why: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(error) => error.fmt(f),
            Self::File(path, why) => write!(f, "cannot read the configuration file {}: {why}", path.display()),
            Self::UnknownKey { key, origin, known } => {
                write!(f, "unknown key {key:?} in {origin}; known are {}", known.join(", "))
            }
            Self::BadValue { place, why } => write!(f, "{place}: {why}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The values of all settings, as text.
pub struct Layers {
    values: BTreeMap<&'static str, (Setting, Vec<String>, Origin)>,
}

impl Layers {
    /// Reads all layers. The flag or variable `config` names the file.
    pub fn read(
        settings: &'static [Setting],
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let default = |setting: &Setting| (*setting, vec![setting.default.to_owned()], Origin::Default);
        let mut layers = Self { values: settings.iter().map(|setting| (setting.key, default(setting))).collect() };
        let flags = command(settings).try_get_matches_from(args).map_err(ConfigError::CommandLine)?;
        let variables = variables(settings, environment)?;
        let file = flags.get_one::<String>("config").or_else(|| variables.get("config"));
        if let Some(file) = file {
            layers.read_file(Path::new(file))?;
        }
        for setting in settings {
            if let Some(value) = variables.get(setting.key) {
                let values = match setting.kind {
                    Kind::Many => value.split(':').map(str::to_owned).collect(),
                    Kind::One | Kind::Switch => vec![value.clone()],
                };
                layers.values.insert(setting.key, (*setting, values, Origin::Environment));
            }
            let values = match setting.kind {
                Kind::Switch => flags.get_flag(setting.key).then(|| vec!["true".to_owned()]),
                Kind::One | Kind::Many => flags.get_many(setting.key).map(|values| values.cloned().collect()),
            };
            if let Some(values) = values {
                layers.values.insert(setting.key, (*setting, values, Origin::Flag));
            }
        }
        Ok(layers)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let unreadable = |why: String| ConfigError::File(path.to_owned(), why);
        let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        // what the parser says beside its message quotes the line, and with it perhaps a password
        let table: toml::Table = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            unreadable(format!("line {line}: {}", error.message()))
        })?;
        for (key, value) in table {
            let known: Vec<String> = self.values.keys().map(|key| (*key).to_owned()).collect();
            let Some((setting, values, origin)) = self.values.get_mut(key.replace('_', "-").as_str()) else {
                return Err(ConfigError::UnknownKey { key, origin: path.display().to_string(), known });
            };
            let texts = match value {
                toml::Value::Array(array) if setting.kind == Kind::Many => array.iter().map(scalar).collect(),
                ref value => scalar(value).map(|text| vec![text]),
            };
            *origin = Origin::File(path.to_owned());
            *values = texts.ok_or_else(|| ConfigError::BadValue {
                place: format!("{key} in {}", path.display()),
                why: expected(match setting.kind {
                    Kind::Many => "a string or an array of strings",
                    Kind::One => "a string or a number",
                    Kind::Switch => "true or false",
                }),
            })?;
        }
        Ok(())
    }

    /// The value of a setting, made into what it stands for.
    pub fn parse<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.parse_or_why(key, |text| parse(text).ok_or_else(|| expected(accepted)))
    }

    /// As [`Layers::parse`], for a parser that knows itself what is wrong.
    pub fn parse_or_why<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let text = self.values[key].1.first().map_or("", String::as_str);
        parse(text).map_err(|why| self.bad_value(key, why))
    }

    /// What is wrong with the value of a setting beyond its form.
    pub fn bad_value(&self, key: &'static str, why: String) -> ConfigError {
        let (setting, values, origin) = &self.values[key];
        bad_value(setting, values.first().map_or("", String::as_str), origin, why)
    }

    /// The values of a setting that may have several.
    pub fn parse_many<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let (setting, values, origin) = &self.values[key];
        let parsed =
            values.iter().map(|text| parse(text).ok_or_else(|| bad_value(setting, text, origin, expected(accepted))));
        parsed.collect()
    }
}

fn expected(accepted: &str) -> String {
    format!("expected {accepted}")
}

fn bad_value(setting: &Setting, text: &str, origin: &Origin, why: String) -> ConfigError {
    let value = if setting.secret { "(not shown)".to_owned() } else { format!("{text:?}") };
    let place = match origin {
        Origin::Flag => format!("--{} {value} on the command line", setting.key),
        Origin::Environment => format!("{}={value} in the environment", setting.variable()),
        Origin::File(path) => format!("{} = {value} in {}", setting.key, path.display()),
        Origin::Default => format!("{} {value} by default", setting.key),
    };
    ConfigError::BadValue { place, why }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn command(settings: &[Setting]) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help(format!("TOML file with any of these settings as keys [env: {PREFIX}CONFIG]"));
    Command::new("user-http-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The HTTP gateway of a Blender render farm")
        .after_help(
            "Flags beat the environment, that beats the file, that beats the defaults. RUST_LOG sets what is logged.\n\
             `user-http-server token` prints a new bearer token.",
        )
        .args(settings.iter().map(Setting::arg))
        .arg(config)
}

/// The variables that concern this program, by the key that they set.
fn variables(
    settings: &[Setting],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut variables = BTreeMap::new();
    for (name, value) in environment {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let key = key.replace('_', "-").to_lowercase();
        let Some(setting) = settings.iter().find(|setting| setting.key == key) else {
            if key == "config" {
                variables.insert(key, value.to_string_lossy().into_owned());
                continue;
            }
            let known = settings.iter().map(Setting::variable).chain([format!("{PREFIX}CONFIG")]).collect();
            let key = name.to_string_lossy().into_owned();
            return Err(ConfigError::UnknownKey { key, origin: "the environment".to_owned(), known });
        };
        let Ok(value) = value.into_string() else {
            return Err(bad_value(setting, "(no UTF-8)", &Origin::Environment, expected("text in UTF-8")));
        };
        // an empty variable is how a shell or a unit file says that it is not set
        if !value.is_empty() {
            variables.insert(key, value);
        }
    }
    Ok(variables)
}
