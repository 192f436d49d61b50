//! Collects the values of settings: flags override the environment, which overrides the file, which overrides the
//! defaults.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};
use user_http_actors::small_file;

use super::error::ConfigError;
use super::setting::{Declaration, Kind, NOT_SHOWN, PREFIX, Setting, Value, without_password};
use super::settings;

/// The flag that names the file. The environment variable is [`PREFIX`] and this in capitals.
const CONFIG: &str = "config";

/// The variable with the token that clients of the gateway send, without [`PREFIX`]. The service itself ignores it.
const CLIENT_TOKEN: &str = "token";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In the environment, in the variable of this name.
    Environment(String),
    /// In this file.
    File(PathBuf),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting and its values, as a person may see them: secrets are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenValues {
    /// The name of the setting, as its key in the file.
    pub key: &'static str,
    /// Its values as they were given, or else its default. Empty if there is neither.
    pub values: Vec<String>,
    /// Whether it is on or off, so that its value is `true` or `false`.
    pub is_switch: bool,
    /// Where the values were given.
    pub origin: Origin,
}

/// The values that were given for a setting.
struct Given {
    values: Vec<Value>,
    origin: Origin,
}

/// The flags of all settings, and `--config`, for the command line of a program. [`Layers::read`] reads them.
pub fn flags() -> impl Iterator<Item = Arg> {
    let config = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .help(format!("TOML file with these settings as keys, such as max-body = \"64MiB\"\n[env: {PREFIX}CONFIG]"));
    settings::ALL.iter().map(Declaration::arg).chain([config])
}

/// What the command line, the environment and the file say, before it is known whether a service can start with it.
///
/// Errors are collected, so that all of them can be reported: [`config`](Self::config), [`check`](Self::check) and
/// [`api_server`](Self::api_server) return them.
///
/// ```
/// use user_http_server::config::{Layers, Origin, flags};
///
/// let command = clap::Command::new("gateway").args(flags());
/// let matches = command.get_matches_from(["gateway", "--max-body", "0", "--keep-alive", "soon"]);
/// let environment = [("USER_HTTP_SERVER_AMQP_URL".into(), "amqp://farm:secret@broker".into())];
/// let mut layers = Layers::read(&[&matches], environment);
///
/// let url = layers.values().find(|given| given.key == "amqp-url").expect("a setting");
/// assert_eq!(url.values, ["amqp://farm:***@broker:5672/%2F"]);
/// assert_eq!(url.origin, Origin::Environment("USER_HTTP_SERVER_AMQP_URL".to_owned()));
/// assert_eq!(layers.config().expect_err("two bad values").len(), 2);
/// ```
#[derive(Default)]
pub struct Layers {
    /// By key. Settings without a given value have their defaults.
    given: BTreeMap<&'static str, Given>,
    /// Every file that any layer names, even if another layer overrides it, because it may still hold a secret.
    files: Vec<PathBuf>,
    config_file: Option<(String, Origin)>,
    client_token: Option<OsString>,
    warnings: Vec<String>,
    errors: Vec<ConfigError>,
}

impl fmt::Debug for Layers {
    /// Without the values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").field("errors", &self.errors).finish_non_exhaustive()
    }
}

impl Layers {
    /// Reads all layers: the [`flags`] that were given to a program and, if it has subcommands, to its subcommands;
    /// the environment; and the file that the flag or variable `config` names.
    pub fn read(flags: &[&ArgMatches], environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut layers = Self::default();
        let variables = layers.read_variables(environment);
        let config_flag = texts_of(flags, CONFIG).pop();
        layers.files.extend(config_flag.iter().chain(&variables.config).map(PathBuf::from));
        let in_variable = |file| (file, Origin::Environment(format!("{PREFIX}CONFIG")));
        layers.config_file = config_flag.map(|file| (file, Origin::Flag)).or(variables.config.map(in_variable));
        if let Some((file, _)) = layers.config_file.clone() {
            layers.read_file(Path::new(&file));
        }
        for setting in settings::ALL {
            if let Some(value) = variables.values.get(setting.key) {
                layers.insert(setting, setting.split(value), Origin::Environment(setting.variable()));
            }
            let texts = match setting.kind {
                Kind::Switch => is_on(flags, setting.key).then(|| "true".to_owned()).into_iter().collect(),
                Kind::One => texts_of(flags, setting.key).pop().into_iter().collect(),
                Kind::Many(_) => texts_of(flags, setting.key),
            };
            if !texts.is_empty() {
                layers.insert(setting, setting.values(texts), Origin::Flag);
            }
        }
        layers
    }

    /// What is odd, but no error: variables of the environment that look like a setting and are none; and, after
    /// [`check`](Self::check), limits of the process that are low.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every setting with its values. The configuration file comes first, under the name `config`.
    pub fn values(&self) -> impl Iterator<Item = GivenValues> {
        let config = GivenValues {
            key: CONFIG,
            values: self.config_file.iter().map(|(file, _)| without_password(file)).collect(),
            is_switch: false,
            origin: self.config_file.as_ref().map_or(Origin::Default, |(_, origin)| origin.clone()),
        };
        let settings = settings::ALL.iter().map(|setting| {
            let (values, origin) = self.given(setting);
            GivenValues {
                key: setting.key,
                values: values.iter().map(|value| value.shown.clone()).collect(),
                is_switch: matches!(setting.kind, Kind::Switch),
                origin: origin.clone(),
            }
        });
        [config].into_iter().chain(settings)
    }

    /// Sets a setting. Returns whether it overrides another value.
    fn insert(&mut self, setting: &Declaration, values: Vec<Value>, origin: Origin) -> bool {
        if setting.is_file() {
            self.files.extend(values.iter().map(|value| PathBuf::from(&value.text)));
        }
        self.given.insert(setting.key, Given { values, origin }).is_some()
    }

    fn read_file(&mut self, path: &Path) {
        match parse_file(path) {
            Ok(table) => {
                for (key, value) in table {
                    if let Err(error) = self.read_key(path, key, &value) {
                        self.errors.push(error);
                    }
                }
            }
            Err(why) => {
                let path = without_password(&path.to_string_lossy());
                self.errors.push(ConfigError::File(path.into(), why));
            }
        }
    }

    /// Reads a key of the file.
    fn read_key(&mut self, path: &Path, key: String, value: &toml::Value) -> Result<(), ConfigError> {
        let name = key.replace('_', "-");
        let Some(setting) = settings::ALL.iter().find(|setting| setting.key == name) else {
            let known: Vec<_> = settings::ALL.iter().map(|setting| setting.key).collect();
            let nearest = nearest(&name, known.iter().copied());
            let key = without_password(&key);
            return Err(ConfigError::UnknownKey { key, file: path.to_owned(), nearest, known });
        };
        let bad =
            |why: &str| ConfigError::BadValue { given: format!("{key} in {}", path.display()), why: why.to_owned() };
        let texts = match value {
            toml::Value::Array(array) if matches!(setting.kind, Kind::Many(_)) => array.iter().map(scalar).collect(),
            value => scalar(value).map(|text| vec![text]),
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
        if self.insert(setting, setting.values(texts), Origin::File(path.to_owned())) {
            return Err(bad("it is given twice, once with _ and once with -"));
        }
        Ok(())
    }

    fn read_variables(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Variables {
        let mut variables = Variables::default();
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let key = name[PREFIX.len()..].replace('_', "-").to_lowercase();
            if key == CONFIG {
                match value.into_string() {
                    Ok(file) => variables.config = Some(file).filter(|file| !file.is_empty()),
                    Err(_) => self.errors.push(not_utf8(CONFIG)),
                }
                continue;
            }
            if key == CLIENT_TOKEN {
                self.client_token = Some(value).filter(|token| !token.is_empty());
                continue;
            }
            let Some(setting) = settings::ALL.iter().find(|setting| setting.key == key) else {
                self.warnings.push(unknown_variable(name, &key));
                continue;
            };
            match value.into_string() {
                // In a shell or a unit file, an empty variable usually means that it is not set.
                Ok(value) if setting.guarded || !value.is_empty() => drop(variables.values.insert(setting.key, value)),
                Ok(_) => {}
                Err(_) => self.errors.push(not_utf8(setting.key)),
            }
        }
        variables
    }

    /// The value of a setting. `None`, after an error was noted, if there is neither a value that is accepted nor a
    /// default. After a value that is not accepted, it is the default, so that the rest can be examined too.
    pub(super) fn one<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let value = self.optional(setting).or_else(|| setting.parse(setting.declaration().default).ok());
        if value.is_none() {
            self.refuse(setting, "expected a value".to_owned());
        }
        value
    }

    /// The value of a setting; `None` if there is neither a value that is accepted nor a default.
    pub(super) fn optional<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        self.many(setting).into_iter().next()
    }

    /// All values of a setting that are accepted.
    pub(super) fn many<T>(&mut self, setting: &Setting<T>) -> Vec<T> {
        self.many_checked(setting, |_| Ok(()))
    }

    /// All values of a setting. Each that was given must pass `check`; a default need not.
    pub(super) fn many_checked<T>(&mut self, setting: &Setting<T>, check: impl Fn(&T) -> Result<(), String>) -> Vec<T> {
        let declaration = setting.declaration();
        let (given, origin) = self.given(&declaration);
        let check = |value: T| match origin {
            Origin::Default => Ok(value),
            _ => check(&value).map(|()| value),
        };
        let parse = |given: &Value| {
            let value = setting.parse(&given.text).and_then(check);
            value.map_err(|why| bad_value(declaration, given, origin, why))
        };
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        for value in given.iter().map(parse) {
            match value {
                Ok(value) => values.push(value),
                Err(error) => errors.push(error),
            }
        }
        self.errors.append(&mut errors);
        values
    }

    /// The token that the environment has for clients of the gateway.
    pub(super) fn client_token(&mut self) -> Option<String> {
        match self.client_token.clone()?.into_string() {
            Ok(token) => Some(token),
            Err(_) => {
                self.errors.push(not_utf8(CLIENT_TOKEN));
                None
            }
        }
    }

    /// Whether a value was given, even if it is not accepted.
    pub(super) fn is_given<T>(&self, setting: &Setting<T>) -> bool {
        self.given.contains_key(setting.declaration().key)
    }

    /// The first value of a setting as it was given, or its default; empty if there is neither.
    pub(super) fn text<T>(&self, setting: &Setting<T>) -> &str {
        let Declaration { key, default, .. } = setting.declaration();
        match self.given.get(key) {
            Some(given) => given.values.first().map_or("", |value| &value.text),
            None => default,
        }
    }

    /// Notes an error: a value that can be parsed but not used.
    pub(super) fn refuse<T>(&mut self, setting: &Setting<T>, why: String) {
        let declaration = setting.declaration();
        let (values, origin) = self.given(&declaration);
        let none = Value { text: String::new(), shown: String::new() };
        let error = bad_value(declaration, values.first().unwrap_or(&none), origin, why);
        self.errors.push(error);
    }

    /// Notes what is odd, but no error.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Returns a value that was made of the settings, unless there are errors.
    pub(super) fn finish<T>(&mut self, value: Option<T>) -> Result<T, Vec<ConfigError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(std::mem::take(&mut self.errors)),
        }
    }

    /// Every file that any layer names, the configuration file included.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn given(&self, setting: &Declaration) -> (Cow<'_, [Value]>, &Origin) {
        match self.given.get(setting.key) {
            Some(given) => (Cow::Borrowed(&given.values), &given.origin),
            None if setting.default.is_empty() => (Cow::Borrowed(&[]), &Origin::Default),
            None => (Cow::Owned(setting.values(vec![setting.default.to_owned()])), &Origin::Default),
        }
    }
}

/// The texts that were given to a flag, at any level of the command line. A level may not have the flag.
fn texts_of(flags: &[&ArgMatches], key: &str) -> Vec<String> {
    let texts = flags.iter().filter_map(|flags| flags.try_get_many::<String>(key).ok().flatten());
    texts.flatten().cloned().collect()
}

/// Whether a switch was given, at any level of the command line.
fn is_on(flags: &[&ArgMatches], key: &str) -> bool {
    flags.iter().any(|flags| matches!(flags.try_get_one::<bool>(key), Ok(Some(true))))
}

fn parse_file(path: &Path) -> Result<toml::Table, String> {
    if path.as_os_str().is_empty() {
        return Err(format!("its name is empty; give --{CONFIG} the path of a file, or leave it out"));
    }
    let text = small_file::read_text(path).map_err(|error| error.to_string())?;
    // Not the whole error of the parser: it quotes the line, which may hold a password.
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

fn bad_value(setting: Declaration, given: &Value, origin: &Origin, why: String) -> ConfigError {
    let Value { text, shown } = given;
    let value = if setting.is_secret() { NOT_SHOWN.to_owned() } else { format!("{shown:?}") };
    // the reason may name it too, such as the path of a file
    let why = if text == shown || text.is_empty() { why } else { why.replace(text, shown) };
    let given = match origin {
        Origin::Flag => format!("--{} {value} on the command line", setting.key),
        Origin::Environment(variable) => format!("{variable}={value} in the environment"),
        Origin::File(path) => format!("{} = {value} in {}", setting.key, path.display()),
        Origin::Default => format!("--{} {value} by default", setting.key),
    };
    ConfigError::BadValue { given, why }
}

/// The error for a variable whose value is no text.
fn not_utf8(key: &str) -> ConfigError {
    let given = format!("{PREFIX}{} in the environment", key.replace('-', "_").to_uppercase());
    ConfigError::BadValue { given, why: "expected text in UTF-8".to_owned() }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The environment variables of this program.
#[derive(Default)]
struct Variables {
    /// By the key of the setting.
    values: BTreeMap<&'static str, String>,
    /// The path of the configuration file.
    config: Option<String>,
}

/// The log line for a variable that is not a setting. Kubernetes sets such variables; their names begin with the name
/// of a Service. The value is not shown, because the variable may be a misspelled secret.
fn unknown_variable(name: &str, key: &str) -> String {
    let known = settings::ALL.iter().map(|setting| setting.key).chain([CONFIG]);
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
