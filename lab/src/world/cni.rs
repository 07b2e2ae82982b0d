//! What a container runtime does with a list of plugins, as the CNI specification says. Pure;
//! what executes it is `pod`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// What the runtime offers to plugins that declare the capability, by the capability's name.
pub type RuntimeConfig = BTreeMap<String, Value>;

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// Version of the specification that the list speaks.
    pub cni_version: String,
    /// The network's name.
    pub name: String,
    /// The plugins' configurations in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
}

impl Conflist {
    /// Reads a list.
    ///
    /// # Errors
    /// Not JSON, or without what a runtime needs.
    pub fn parse(text: &str) -> Result<Conflist> {
        let list: Value = serde_json::from_str(text).context("read the conflist as JSON")?;
        let name = list["name"].as_str().context("the conflist has no name")?.to_owned();
        let cni_version = list["cniVersion"].as_str().unwrap_or("0.1.0").to_owned();
        let plugins = list["plugins"].as_array().context("the conflist has no plugins")?;
        let plugins = plugins.iter().map(|it| {
            let plugin = it.as_object().context("a plugin of the conflist is no object")?;
            plugin.get("type").and_then(Value::as_str).context("a plugin of the conflist has no type")?;
            Ok(plugin.clone())
        });
        Ok(Conflist { cni_version, name, plugins: plugins.collect::<Result<_>>()? })
    }

    /// The list that a node has before the daemon has written one: our plugin alone.
    pub fn builtin() -> Conflist {
        let plugin = json!({
            "name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
            "podSGEnforcingMode": "strict", "pluginLogLevel": "DEBUG",
            "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
        });
        Conflist {
            cni_version: "0.4.0".to_owned(),
            name: "aws-cni".to_owned(),
            plugins: plugin.as_object().into_iter().cloned().collect(),
        }
    }

    /// The name of a plugin's binary.
    pub fn binary(plugin: &Map<String, Value>) -> &str {
        // `parse` has seen that it is there.
        plugin.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// What goes to a plugin's standard input: its configuration with the list's name and version,
    /// the result so far, and what the runtime has for the capabilities that it declares.
    pub fn input(
        &self,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        runtime: &RuntimeConfig,
    ) -> Value {
        let mut config = plugin.clone();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.cni_version));
        let declared = config.remove("capabilities");
        let wanted = |name: &str| declared.as_ref().is_some_and(|it| it[name] == true);
        let offered: Map<_, _> =
            runtime.iter().filter(|(name, _)| wanted(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !offered.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(offered));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(config)
    }
}

/// A failure that a plugin reported as the specification asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{plugin} {command}: code {code}: {msg}{}", if details.is_empty() { String::new() } else { format!(" ({details})") })]
pub struct PluginError {
    /// The binary.
    pub plugin: String,
    /// `ADD`, `DEL` …
    pub command: String,
    /// CNI's error code.
    pub code: u64,
    /// The message that ends in the pod's events.
    pub msg: String,
    /// More, or nothing.
    pub details: String,
}

/// What the output of a plugin that ended with `is_success` means.
///
/// # Errors
/// [`PluginError`] as the plugin wrote it; another error where standard output is not what the
/// specification asks for, because a runtime would fail there too.
pub fn outcome(plugin: &str, command: &str, is_success: bool, stdout: &[u8]) -> Result<Option<Value>> {
    let text = String::from_utf8_lossy(stdout);
    if is_success && text.trim().is_empty() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{plugin} {command}: standard output is no single JSON value: {text:?}"))?;
    if is_success {
        return Ok(Some(value));
    }
    let Some(code) = value["code"].as_u64() else {
        bail!("{plugin} {command} failed without a CNI error: {text:?}")
    };
    let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (plugin, command) = (plugin.to_owned(), command.to_owned());
    Err(PluginError { plugin, command, code, msg: word("msg"), details: word("details") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[
        {"name":"aws-cni","type":"aws-cni","mtu":"9001","capabilities":{"annotations":true,"bandwidth":false}},
        {"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#;

    #[test]
    fn a_plugin_gets_name_and_version_of_the_list() {
        let list = Conflist::parse(LIST).unwrap();

        let input = list.input(&list.plugins[1], None, &RuntimeConfig::new());

        assert_eq!(input, json!({"type": "portmap", "snat": true, "name": "aws-cni", "cniVersion": "0.4.0"}));
    }

    #[test]
    fn a_plugin_gets_only_what_it_declared() {
        let list = Conflist::parse(LIST).unwrap();
        let offers =
            ["annotations", "bandwidth", "portMappings"].map(|it| (it.to_owned(), json!({"of": it})));
        let runtime = RuntimeConfig::from(offers);

        let input = list.input(&list.plugins[0], None, &runtime);

        assert_eq!(input["runtimeConfig"], json!({"annotations": {"of": "annotations"}}));
    }

    #[test]
    fn the_result_so_far_goes_along() {
        let list = Conflist::parse(LIST).unwrap();
        let result = json!({"ips": []});

        let input = list.input(&list.plugins[1], Some(&result), &RuntimeConfig::new());

        assert_eq!(input["prevResult"], result);
    }

    #[test]
    fn a_reported_error_keeps_code_and_text() {
        let stdout = br#"{"code": 11, "msg": "no address", "details": "29 assigned"}"#;

        let error = outcome("aws-cni", "ADD", false, stdout).unwrap_err();

        let error = error.downcast::<PluginError>().unwrap();
        assert_eq!(
            (error.code, error.to_string().as_str()),
            (11, "aws-cni ADD: code 11: no address (29 assigned)")
        );
    }

    #[test]
    fn two_json_values_on_standard_output_are_no_result() {
        assert!(outcome("aws-cni", "ADD", true, b"{} {}").is_err());
    }

    #[test]
    fn silence_is_a_success_without_result() {
        assert_eq!(outcome("aws-cni", "DEL", true, b"\n").unwrap(), None);
    }

    #[test]
    fn a_list_without_plugin_type_is_refused() {
        let error = Conflist::parse(r#"{"name":"x","plugins":[{}]}"#).unwrap_err();

        assert!(format!("{error:#}").contains("no type"), "{error:#}");
    }
}
