//! Versions of the CNI specification.

use crate::json::go_quote;

/// Every version that a configuration may name, oldest first.
pub(crate) const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest version, in which VERSION answers.
pub(crate) const NEWEST: &str = "1.1.0";

/// How a version writes its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// 0.1.0 and 0.2.0: one address per family, no interfaces.
    Oldest,
    /// 0.3.0 to 0.4.0.
    Middle,
    /// 1.0.0 and 1.1.0.
    Newest,
}

impl Generation {
    /// The generation of one of [`SUPPORTED`].
    pub(crate) fn of(version: &str) -> Option<Self> {
        match version {
            "0.1.0" | "0.2.0" => Some(Self::Oldest),
            "0.3.0" | "0.3.1" | "0.4.0" => Some(Self::Middle),
            "1.0.0" | "1.1.0" => Some(Self::Newest),
            _ => None,
        }
    }
}

/// Major, minor and patch number of a version; missing ones are 0.
///
/// # Errors
/// What Go's CNI library says about it.
pub(crate) fn parse(version: &str) -> Result<[i64; 3], String> {
    let parts: Vec<&str> = version.split('.').collect();
    if parts.len() > 3 {
        return Err(format!("invalid version {}: too many parts", go_quote(version)));
    }
    let mut numbers = [0; 3];
    for ((number, part), name) in numbers.iter_mut().zip(parts).zip(["major", "minor", "micro"]) {
        *number = part.parse().map_err(|_| {
            let part = go_quote(part);
            format!(
                "failed to convert {name} version part {part}: strconv.Atoi: parsing {part}: invalid syntax"
            )
        })?;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse("0.10.0").unwrap() > parse("0.4.0").unwrap());
        assert_eq!(parse("1").unwrap(), [1, 0, 0]);
    }

    #[test]
    fn a_version_that_is_none_is_named() {
        let text = "failed to convert major version part \"x\": strconv.Atoi: parsing \"x\": invalid syntax";
        assert_eq!(parse("x").unwrap_err(), text);
        assert_eq!(parse("1.2.3.4").unwrap_err(), "invalid version \"1.2.3.4\": too many parts");
    }
}
