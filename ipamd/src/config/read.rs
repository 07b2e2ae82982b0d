//! Reads variables one by one and gathers what is wrong with them.

use std::time::Duration;

use super::{Config, ConfigError, ConfigErrors};

/// The environment, and the complaints about it so far.
pub(super) struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { variable, errors: Vec::new() }
    }

    /// The value as it stands; none if the variable is not set.
    pub(super) fn raw(&self, name: &str) -> Option<String> {
        (self.variable)(name)
    }

    /// The value; none if the variable is not set or empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    /// The value as `parse` reads it, or `default` if the variable is not set or empty.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        match self.text(name).as_deref().map(parse) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(expected)) => {
                self.refuse(name, &expected);
                default
            }
        }
    }

    /// A boolean in one of the forms that Go's parser knows.
    pub(super) fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.parsed(name, default, |value| match value {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        })
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, name: &'static str, default: u32, least: u32, most: u32) -> u32 {
        self.parsed(name, default, |value| {
            // A sign is accepted, as ever.
            let number = value.parse::<i64>().ok().and_then(|number| u32::try_from(number).ok());
            number
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| format!("expected a whole number from {least} to {most}"))
        })
    }

    /// A number of seconds within bounds.
    pub(super) fn seconds(&mut self, name: &'static str, default: u32, least: u32, most: u32) -> Duration {
        Duration::from_secs(self.number(name, default, least, most).into())
    }

    /// Adds a complaint about a variable.
    pub(super) fn refuse(&mut self, name: &'static str, expected: &str) {
        let value = self.raw(name);
        self.errors.push(ConfigError { name, value, expected: expected.to_owned() });
    }

    /// The settings, unless there were complaints.
    pub(super) fn finish(self, config: Config) -> Result<Config, ConfigErrors> {
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}
