//! What a setting is: its name in each place, its default, and how its text is read.

use clap::{Arg, ArgAction};

/// What the environment variables begin with.
pub const PREFIX: &str = "USER_HTTP_SERVER_";

/// A setting whose values are each a `T`.
#[derive(Debug)]
pub struct Setting<T> {
    declaration: Declaration,
    parse: fn(&str) -> Result<T, String>,
}

/// What can be said of a setting without knowing what its values are.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its flag without the dashes, and its key in the file.
    pub key: &'static str,
    placeholder: &'static str,
    /// Empty where there is none.
    pub default: &'static str,
    help: &'static str,
    pub kind: Kind,
    /// Its value is never shown.
    pub secret: bool,
    /// A variable that is empty is an error instead of one that is not set.
    pub guarded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    One,
    Many,
    Switch,
}

impl<T> Setting<T> {
    /// A setting with one value. `default` is empty where there is none; `parse` never sees an empty text, and says
    /// what is wrong with any other.
    pub const fn new(
        key: &'static str,
        placeholder: &'static str,
        default: &'static str,
        help: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Self {
        let declaration =
            Declaration { key, placeholder, default, help, kind: Kind::One, secret: false, guarded: false };
        Self { declaration, parse }
    }

    /// It may have several values.
    pub const fn many(self) -> Self {
        let Self { declaration, parse } = self;
        Self { declaration: Declaration { kind: Kind::Many, ..declaration }, parse }
    }

    /// Its value is never shown.
    pub const fn secret(self) -> Self {
        let Self { declaration, parse } = self;
        Self { declaration: Declaration { secret: true, ..declaration }, parse }
    }

    /// What comes of leaving it out is worse than not starting: a variable that is empty, because a shell or a compose
    /// file took its value from one that is not set, must not pass for one that was left out.
    pub const fn guarded(self) -> Self {
        let Self { declaration, parse } = self;
        Self { declaration: Declaration { guarded: true, ..declaration }, parse }
    }

    pub const fn declaration(&self) -> Declaration {
        self.declaration
    }

    /// Reads one value.
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
    /// A setting that is off by default, and whose flag takes no value.
    pub const fn switch(key: &'static str, help: &'static str) -> Self {
        let Self { declaration, parse } = Self::new(key, "", "false", help, truth);
        Self { declaration: Declaration { kind: Kind::Switch, ..declaration }, parse }
    }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".to_owned())
}

impl Declaration {
    /// Whether its value is the path of a file that is read.
    pub fn is_file(&self) -> bool {
        self.placeholder == "FILE"
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('-', "_").to_uppercase())
    }

    /// Its flag, as clap takes it.
    pub fn arg(&self) -> Arg {
        let default = if self.default.is_empty() || self.kind == Kind::Switch {
            String::new()
        } else {
            format!(" [default: {}]", self.default)
        };
        let arg = Arg::new(self.key).long(self.key).help(format!("{}{default} [env: {}]", self.help, self.variable()));
        match self.kind {
            Kind::One => arg.value_name(self.placeholder),
            Kind::Many => arg.value_name(self.placeholder).action(ArgAction::Append),
            Kind::Switch => arg.action(ArgAction::SetTrue),
        }
    }
}
