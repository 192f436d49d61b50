//! A setting: its names, its default, its help, and the parser of its values.

use clap::{Arg, ArgAction};

/// The beginning of every environment variable.
pub const PREFIX: &str = "USER_HTTP_SERVER_";

/// What a person sees of a value that may have a secret anywhere.
pub const NOT_SHOWN: &str = "(not shown)";

/// A setting whose values have the type `T`.
#[derive(Debug)]
pub struct Setting<T> {
    declaration: Declaration,
    parse: fn(&str) -> Result<T, String>,
}

/// A setting without the type of its values.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its flag without the dashes, and its key in the file.
    pub key: &'static str,
    placeholder: &'static str,
    /// Empty if there is none.
    pub default: &'static str,
    help: &'static str,
    /// The group in `--help`.
    heading: &'static str,
    pub kind: Kind,
    /// Shows a value without its secret, if it has one; `None` if that cannot be told apart.
    secret: Option<fn(&str) -> Option<String>>,
    /// Whether an empty variable is an error. Otherwise, an empty variable counts as not set.
    pub guarded: bool,
}

/// How many values a setting has.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    One,
    /// Any number. A variable has all of them in one text, which this function splits.
    Many(fn(&str) -> Vec<String>),
    /// On or off.
    Switch,
}

/// A value as it was given.
#[derive(Clone, Debug)]
pub struct Value {
    pub text: String,
    /// As a person may see it.
    pub shown: String,
}

impl<T> Setting<T> {
    /// A setting with one value. `default` is empty if there is no default. `parse` never gets an empty text; its error
    /// says what would be accepted.
    pub const fn new(
        key: &'static str,
        placeholder: &'static str,
        default: &'static str,
        help: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Self {
        let declaration =
            Declaration { key, placeholder, default, help, heading: "", kind: Kind::One, secret: None, guarded: false };
        Self { declaration, parse }
    }

    const fn with(self, declaration: Declaration) -> Self {
        Self { declaration, parse: self.parse }
    }

    /// Sets the group in `--help`.
    pub const fn under(self, heading: &'static str) -> Self {
        let declaration = Declaration { heading, ..self.declaration };
        self.with(declaration)
    }

    /// Allows several values. In a variable, colons separate them.
    pub const fn many(self) -> Self {
        self.many_separated_by(split_at_colons)
    }

    /// Allows several values. `split` separates them in a variable.
    pub const fn many_separated_by(self, split: fn(&str) -> Vec<String>) -> Self {
        let declaration = Declaration { kind: Kind::Many(split), ..self.declaration };
        self.with(declaration)
    }

    /// Its values have a secret, and errors never show them. `masked` shows a value without its secret; `None` if that
    /// cannot be told apart.
    pub const fn secret(self, masked: fn(&str) -> Option<String>) -> Self {
        let declaration = Declaration { secret: Some(masked), ..self.declaration };
        self.with(declaration)
    }

    /// Makes an empty variable an error. A shell or a compose file may have filled it from another variable that is not
    /// set, and running without this setting would be worse than not starting.
    pub const fn guarded(self) -> Self {
        let declaration = Declaration { guarded: true, ..self.declaration };
        self.with(declaration)
    }

    pub const fn declaration(&self) -> Declaration {
        self.declaration
    }

    /// Parses one value.
    ///
    /// # Errors
    /// What is wrong with it, or what would be accepted.
    pub fn parse(&self, text: &str) -> Result<T, String> {
        match text {
            "" => Err("it is empty; give a value, or leave the setting out".to_owned()),
            text => (self.parse)(text),
        }
    }
}

impl Setting<bool> {
    /// A setting that is off by default, and whose flag has no value.
    pub const fn switch(key: &'static str, help: &'static str) -> Self {
        let setting = Self::new(key, "", "false", help, truth);
        let declaration = Declaration { kind: Kind::Switch, ..setting.declaration };
        setting.with(declaration)
    }
}

/// The text without the password of a URL in it, which may lack its scheme. No setting but a secret one takes such a
/// URL, but it may be given to another by mistake. Whatever the URL's parts are, its password is behind the first colon
/// and before the last `@`.
pub fn without_password(text: &str) -> String {
    match text.rsplit_once('@').and_then(|(account, rest)| Some((account.split_once(':')?.0, rest))) {
        Some((start, rest)) => format!("{start}:***@{rest}"),
        None => text.to_owned(),
    }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".to_owned())
}

fn split_at_colons(list: &str) -> Vec<String> {
    list.split(':').map(str::to_owned).collect()
}

impl Declaration {
    /// Whether its value is the path of a file that this program reads.
    pub fn is_file(&self) -> bool {
        self.placeholder == "FILE"
    }

    /// Whether its values have a secret.
    pub fn is_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// A value as a person may see it.
    fn shown(&self, text: &str) -> String {
        match self.secret {
            Some(masked) => masked(text).unwrap_or_else(|| NOT_SHOWN.to_owned()),
            None => without_password(text),
        }
    }

    /// The values that these texts are.
    pub fn values(&self, texts: impl IntoIterator<Item = String>) -> Vec<Value> {
        texts.into_iter().map(|text| Value { shown: self.shown(&text), text }).collect()
    }

    /// The values that a variable of the environment has.
    pub fn split(&self, variable: &str) -> Vec<Value> {
        match self.kind {
            Kind::One | Kind::Switch => self.values([variable.to_owned()]),
            // a password may have been split too
            Kind::Many(split) if !self.is_secret() && without_password(variable) != variable => {
                split(variable).into_iter().map(|text| Value { text, shown: NOT_SHOWN.to_owned() }).collect()
            }
            Kind::Many(split) => self.values(split(variable)),
        }
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('-', "_").to_uppercase())
    }

    /// Its flag.
    pub fn arg(&self) -> Arg {
        let mut notes = Vec::new();
        if !self.default.is_empty() && !matches!(self.kind, Kind::Switch) {
            notes.push(format!("[default: {}]", self.default));
        }
        notes.push(format!("[env: {}]", self.variable()));
        if matches!(self.kind, Kind::Many(_)) {
            notes.push("[repeatable; a:b in the environment]".to_owned());
        }
        let help = format!("{}\n{}", self.help, notes.join(" "));
        let arg = Arg::new(self.key).long(self.key).help(help).help_heading(self.heading);
        match self.kind {
            Kind::One => arg.value_name(self.placeholder),
            Kind::Many(_) => arg.value_name(self.placeholder).action(ArgAction::Append),
            Kind::Switch => arg.action(ArgAction::SetTrue),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::without_password;

    /// All texts of up to `len` of these parts, which are what could end a user name or a password.
    fn texts(len: usize) -> Vec<String> {
        let mut texts = vec![String::new()];
        let mut longest = texts.clone();
        for _ in 0..len {
            let longer = |text: &String| [":", "/", "@", "://", "a", "?", "#"].map(|part| format!("{text}{part}"));
            longest = longest.iter().flat_map(longer).collect();
            texts.extend_from_slice(&longest);
        }
        texts
    }

    #[test]
    fn nothing_between_the_first_colon_and_the_last_at_is_shown() {
        for (before, after) in texts(2).iter().flat_map(|before| texts(2).into_iter().map(move |after| (before, after)))
        {
            for [start, end] in [["farm:", "@h"], [":", "@h:1"], ["amqp://farm:", "@h/x"], ["amqp://", "@"]] {
                let text = format!("{start}{before}s3cr3t{after}{end}");
                let shown = without_password(&text);
                assert!(!shown.contains("s3cr3t") && shown.ends_with(end), "{text} is shown as {shown}");
            }
        }
        assert_eq!(without_password("farm:pa://s3cr3t@h:1"), "farm:***@h:1");
        for text in ["", "127.0.0.1:1", "[::1]:1", "/srv/blends@2026", "a:b", "amqp://h", "farm@h:1"] {
            assert_eq!(without_password(text), text);
        }
    }
}
