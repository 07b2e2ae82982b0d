//! `CNI_ARGS`: what the runtime says about the pod, as `KEY=value` pairs between semicolons.

use vpc::PodName;

use crate::json::go_quote;

/// The pod as Kubernetes knows it; all parts are empty for a sandbox it did not make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodArgs {
    pub(crate) pod: PodName,
    pub(crate) infra_container_id: String,
    pub(crate) uid: String,
}

impl PodArgs {
    /// Reads the pairs.
    ///
    /// # Errors
    /// A text that begins with `ARGS:`, for a malformed pair, or an unknown one unless
    /// `IgnoreUnknown=1` stands among them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut ignores_unknown = false;
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let mut parts = pair.split('=');
            let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(format!("ARGS: invalid pair {}", go_quote(pair)));
            };
            match key {
                "IgnoreUnknown" => {
                    ignores_unknown = match value.to_lowercase().as_str() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        other => {
                            return Err(format!(
                                "ARGS: error parsing value of pair {}: boolean unmarshal error: invalid input {other}",
                                go_quote(pair)
                            ));
                        }
                    };
                }
                "K8S_POD_NAME" => value.clone_into(&mut args.pod.name),
                "K8S_POD_NAMESPACE" => value.clone_into(&mut args.pod.namespace),
                "K8S_POD_INFRA_CONTAINER_ID" => value.clone_into(&mut args.infra_container_id),
                "K8S_POD_UID" => value.clone_into(&mut args.uid),
                _ => unknown.push(go_quote(pair)),
            }
        }
        if !unknown.is_empty() && !ignores_unknown {
            return Err(format!("ARGS: unknown args [{}]", unknown.join(" ")));
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_pod_is_read_and_the_rest_ignored_where_that_is_asked_for() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
                    K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u;K8S_OTHER=x";
        let args = PodArgs::parse(text).unwrap();

        assert_eq!(args.pod, PodName::new("default", "web-0"));
        assert_eq!((args.infra_container_id.as_str(), args.uid.as_str()), ("abc", "u"));
        assert_eq!(PodArgs::parse("").unwrap(), PodArgs::default());
    }

    #[test]
    fn malformed_pairs_are_named() {
        for (text, error) in [
            ("foo=bar", "ARGS: unknown args [\"foo=bar\"]"),
            ("a=1;b=2;IgnoreUnknown=0", "ARGS: unknown args [\"a=1\" \"b=2\"]"),
            ("foo", "ARGS: invalid pair \"foo\""),
            ("K8S_POD_NAME=a;", "ARGS: invalid pair \"\""),
            ("a=b=c", "ARGS: invalid pair \"a=b=c\""),
            (
                "IgnoreUnknown=yes",
                "ARGS: error parsing value of pair \"IgnoreUnknown=yes\": boolean unmarshal error: invalid input yes",
            ),
        ] {
            assert_eq!(PodArgs::parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text: String) {
            let _ = PodArgs::parse(&text);
        }
    }
}
