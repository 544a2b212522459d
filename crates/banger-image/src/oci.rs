//! Configurations of OCI images: how an image wants to be run, in OCI's words and in banger's.

use std::collections::BTreeMap;

use banger_api::image::ImageConfig;
use serde::{Deserialize, Serialize};

/// Most bytes of all that is taken from a configuration together.
const MAX_TEXT: usize = 1 << 20;

/// The part of a configuration that says how to run the image.
#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Run>,
}

/// Docker writes `null` for what is not set.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    #[serde(skip_serializing_if = "is_empty")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_empty")]
    stop_signal: Option<String>,
}

/// How the image with this configuration wants to be run. Answers what is wrong with it.
pub(crate) fn image_config(json: &[u8]) -> Result<ImageConfig, String> {
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| format!("its configuration cannot be understood: {error}"))?;
    let run = document.config.unwrap_or_default();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let config = ImageConfig {
        user: filled(run.user),
        env: run.env.unwrap_or_default().iter().filter_map(|pair| variable(pair)).collect(),
        // Not the user's home, as in a machine: as in Docker.
        workdir: filled(run.working_dir).or_else(|| Some("/".to_owned())),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
        stop_signal: filled(run.stop_signal),
        labels: run.labels.unwrap_or_default(),
    };
    check(&config)?;
    Ok(config)
}

/// The configuration, as JSON, of an image of one layer that wants to be run like that.
pub(crate) fn config_json(config: &ImageConfig, diff_id: &str, created: &str) -> Vec<u8> {
    let run = Run {
        user: config.user.clone(),
        env: Some(config.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        entrypoint: Some(config.entrypoint.clone()).filter(|words| !words.is_empty()),
        cmd: Some(config.cmd.clone()).filter(|words| !words.is_empty()),
        working_dir: config.workdir.clone(),
        exposed_ports: Some(
            config.exposed_ports.iter().map(|port| (port.clone(), empty())).collect(),
        )
        .filter(|ports: &BTreeMap<_, _>| !ports.is_empty()),
        labels: Some(config.labels.clone()).filter(|labels| !labels.is_empty()),
        stop_signal: config.stop_signal.clone(),
    };
    let document = serde_json::json!({
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": created, "created_by": "banger" }],
    });
    serde_json::to_vec(&document).expect("plain data")
}

fn empty() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_ref().is_none_or(String::is_empty)
}

/// What is not `NAME=VALUE` is no variable; Docker drops it too.
fn variable(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

/// Nothing may be in it that a command line or an environment cannot have.
fn check(config: &ImageConfig) -> Result<(), String> {
    let words = config.entrypoint.iter().chain(&config.cmd).chain(&config.exposed_ports);
    let texts = [&config.user, &config.workdir, &config.stop_signal].into_iter().flatten();
    let pairs = config.env.iter().chain(&config.labels).flat_map(|(name, value)| [name, value]);
    let mut bytes = 0_usize;
    for text in words.chain(texts).chain(pairs) {
        if text.contains('\0') {
            return Err("its configuration has a null byte in it".to_owned());
        }
        bytes += text.len();
    }
    if bytes > MAX_TEXT {
        return Err("its configuration is larger than 1 MiB".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{
        "architecture": "amd64",
        "config": {
            "Hostname": "", "User": "65532:65532", "ExposedPorts": {"8080/tcp": {}},
            "Env": ["PATH=/bin", "EMPTY=", "A=b=c", "nonsense", "=x"],
            "Cmd": ["-g", "daemon off;"], "Entrypoint": ["/docker-entrypoint.sh"],
            "WorkingDir": "/srv", "Labels": {"maintainer": "us"}, "StopSignal": "SIGQUIT"
        },
        "rootfs": {"type": "layers", "diff_ids": []}
    }"#;

    /// What an image that says nothing gets.
    fn plain() -> ImageConfig {
        ImageConfig { workdir: Some("/".to_owned()), ..ImageConfig::default() }
    }

    #[test]
    fn what_docker_writes_is_understood() {
        let config = image_config(DOCKER.as_bytes()).expect("good");
        assert_eq!(config.user.as_deref(), Some("65532:65532"));
        let env: Vec<_> = config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("A", "b=c"), ("EMPTY", ""), ("PATH", "/bin")]);
        assert_eq!(config.entrypoint, ["/docker-entrypoint.sh"]);
        assert_eq!(config.cmd, ["-g", "daemon off;"]);
        assert_eq!(config.workdir.as_deref(), Some("/srv"));
        assert_eq!(config.exposed_ports, ["8080/tcp"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.labels["maintainer"], "us");
    }

    #[test]
    fn what_is_not_set_may_be_null_or_missing() {
        for text in ["{}", r#"{"config": null}"#, r#"{"config": {"Env": null, "User": ""}}"#] {
            assert_eq!(image_config(text.as_bytes()), Ok(plain()), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "7", r#"{"config": {"Cmd": "sh"}}"#, r#"{"config": {"Cmd": ["a\u0000"]}}"#]
        {
            image_config(text.as_bytes()).expect_err(text);
        }
        let long = format!(r#"{{"config": {{"WorkingDir": "/{}"}}}}"#, "a".repeat(MAX_TEXT));
        image_config(long.as_bytes()).expect_err("too long");
    }

    #[test]
    fn what_is_written_can_be_read() {
        let config = image_config(DOCKER.as_bytes()).expect("good");
        let json = config_json(&config, "sha256:0", "2026-01-01T00:00:00Z");
        assert_eq!(image_config(&json), Ok(config));
        let json = config_json(&ImageConfig::default(), "sha256:0", "2026-01-01T00:00:00Z");
        assert_eq!(image_config(&json), Ok(plain()));
    }
}
