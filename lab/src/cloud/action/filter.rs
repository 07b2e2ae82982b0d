//! Filters of the Describe actions.

use std::collections::BTreeMap;

use crate::cloud::error::Ec2Error;
use crate::cloud::request::Filter;

/// The values that a filter of this name is compared with; `None` for a name that EC2 does not
/// know for this kind of thing.
pub(super) type Values = Option<Vec<String>>;

/// Whether all of `filters` accept the thing that `values` tells about.
pub(super) fn accepts(filters: &[Filter], values: impl Fn(&str) -> Values) -> Result<bool, Ec2Error> {
    for filter in filters {
        let Some(actual) = values(&filter.name) else {
            return Err(Ec2Error::invalid_value(format!("The filter '{}' is invalid", filter.name)));
        };
        let fits = |value: &String| filter.values.iter().any(|pattern| matches(pattern, value));
        if !actual.iter().any(fits) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `tag:KEY`, `tag-key` and `tag-value`, which every kind of thing has.
pub(super) fn tag_values(name: &str, tags: &BTreeMap<String, String>) -> Values {
    if let Some(key) = name.strip_prefix("tag:") {
        return Some(tags.get(key).cloned().into_iter().collect());
    }
    match name {
        "tag-key" => Some(tags.keys().cloned().collect()),
        "tag-value" => Some(tags.values().cloned().collect()),
        _ => None,
    }
}

/// EC2's wildcards: `*` for any text, `?` for one character, a backslash to mean them literally.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Classic two-pointer matching: on a mismatch, the last star swallows one character more.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let (step, fits) = match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some('?') => (1, true),
            Some('\\') if p + 1 < pattern.len() => (2, pattern[p + 1] == text[t]),
            Some(literal) => (1, *literal == text[t]),
            None => (0, false),
        };
        if fits {
            p += step;
            t += 1;
        } else if let Some((at, swallowed)) = star {
            star = Some((at, swallowed + 1));
            p = at + 1;
            t = swallowed + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|it| *it == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_ec2() {
        for (pattern, text, expected) in [
            ("aws-K8S-*", "aws-K8S-i-0a", true),
            ("*", "", true),
            ("", "x", false),
            ("a*c?e", "abbbcde", true),
            ("a*c?e", "abbbce", false),
            ("*-*-b", "x-a-c-b", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("eni-1", "eni-12", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }
}
