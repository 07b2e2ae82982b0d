//! Parameters of a request, and which of them were understood.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use hyper::body::Bytes;
use hyper::{Method, Request};

use crate::cloud::{Ec2Error, Filter};

/// The version of the API that this front speaks.
const VERSION: &str = "2016-11-15";

/// Parameters by name. Remembers which were read, so that the rest can be called unknown.
pub(super) struct Params {
    values: BTreeMap<String, String>,
    read: RefCell<BTreeSet<String>>,
}

impl Params {
    /// From the body of a POST or the query of a GET.
    pub(super) fn read(request: &Request<Bytes>) -> Result<Params, Ec2Error> {
        let form = match *request.method() {
            Method::POST => request.body().as_ref(),
            Method::GET => request.uri().query().unwrap_or("").as_bytes(),
            _ => &[],
        };
        let values = form
            .split(|byte| *byte == b'&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
                Some((decode(&pair[..at])?, decode(pair.get(at + 1..).unwrap_or(&[]))?))
            })
            .collect::<Option<BTreeMap<String, String>>>()
            .ok_or_else(|| {
                Ec2Error::new("MalformedQueryString", "The query string contains a syntax error")
            })?;
        let params = Params { values, read: RefCell::default() };
        match params.text("Version") {
            Some(VERSION) => Ok(params),
            Some(version) => Err(Ec2Error::invalid_value(format!(
                "The API version '{version}' is not served here; use {VERSION}"
            ))),
            None => Err(Ec2Error::missing("Version")),
        }
    }

    pub(super) fn action(&self) -> Option<&str> {
        self.text("Action")
    }

    /// All parameters on one line, for the log.
    pub(super) fn summary(&self) -> String {
        let is_told = |name: &str| !matches!(name, "Action" | "Version");
        let told = self.values.iter().filter(|(name, _)| is_told(name));
        told.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let value = self.values.get(name)?;
        self.read.borrow_mut().insert(name.to_owned());
        Some(value)
    }

    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    pub(super) fn required(&self, name: &str) -> Result<String, Ec2Error> {
        self.owned(name).filter(|it| !it.is_empty()).ok_or_else(|| Ec2Error::missing(name))
    }

    /// A value of a type with a text form, such as a number or an address.
    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Ec2Error> {
        self.text(name).map(|value| parse(name, value)).transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Ec2Error> {
        self.parsed(name)
    }

    /// `name.1`, `name.2` and so on, in order.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.indices(name).into_iter().filter_map(|index| self.owned(&format!("{name}.{index}"))).collect()
    }

    pub(super) fn parsed_list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, Ec2Error> {
        self.list(name).iter().map(|value| parse(name, value)).collect()
    }

    /// The numbers N for which something begins with `name.N`.
    pub(super) fn indices(&self, name: &str) -> Vec<u32> {
        let numbers: BTreeSet<u32> = self
            .values
            .keys()
            .filter_map(|key| key.strip_prefix(name)?.strip_prefix('.'))
            .filter_map(|rest| rest.split('.').next()?.parse().ok())
            .collect();
        numbers.into_iter().collect()
    }

    pub(super) fn filters(&self) -> Result<Vec<Filter>, Ec2Error> {
        self.indices("Filter")
            .into_iter()
            .map(|index| {
                let name = self.required(&format!("Filter.{index}.Name"))?;
                Ok(Filter { name, values: self.list(&format!("Filter.{index}.Value")) })
            })
            .collect()
    }

    pub(super) fn tags(&self, prefix: &str) -> Result<BTreeMap<String, String>, Ec2Error> {
        let mut tags = BTreeMap::new();
        for index in self.indices(prefix) {
            let key = self.required(&format!("{prefix}.{index}.Key"))?;
            let value = self.owned(&format!("{prefix}.{index}.Value")).unwrap_or_default();
            if tags.insert(key.clone(), value).is_some() {
                return Err(Ec2Error::invalid_value(format!("Duplicate tag key '{key}' specified.")));
            }
        }
        Ok(tags)
    }

    /// Complains of the first parameter that nobody read.
    pub(super) fn finish(&self) -> Result<(), Ec2Error> {
        let read = self.read.borrow();
        let known = |name: &str| read.contains(name) || matches!(name, "Action" | "Version");
        match self.values.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Ec2Error::new("UnknownParameter", format!("The parameter {name} is not recognized")))
            }
        }
    }
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, Ec2Error> {
    value
        .parse()
        .map_err(|_| Ec2Error::invalid_value(format!("Value ({value}) for parameter {name} is invalid.")))
}

/// Undoes form encoding; `None` for a broken escape or bytes that are not UTF-8.
fn decode(encoded: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &tail[2..];
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_encoding_is_undone_and_broken_escapes_are_refused() {
        assert_eq!(decode(b"a%2Fb+c").as_deref(), Some("a/b c"));
        assert_eq!(decode(b"%C3%A9").as_deref(), Some("\u{e9}"));
        for broken in [&b"%"[..], b"%2", b"%zz", b"%ff"] {
            assert_eq!(decode(broken), None, "{broken:?}");
        }
    }
}
