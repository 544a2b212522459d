//! The daemon's API without the command line between: for what is done a thousand times.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::wait;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of a host's daemon. Every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub(crate) fn new(runtime: &Path) -> Self {
        Self { socket: runtime.join("api.sock") }
    }

    /// Asks, and reads the answer to its end.
    ///
    /// # Panics
    /// If the daemon does not answer, or refuses.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> String {
        let stream = UnixStream::connect(&self.socket).expect("a daemon listens");
        let answer = exchange(stream, method, path, body).expect("the daemon answers");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        body.to_owned()
    }

    /// Asks for something that takes a while, and waits until it is done.
    ///
    /// # Panics
    /// If it fails.
    pub fn finish(&self, method: &str, path: &str, body: Option<&Value>) {
        let operation: Value =
            serde_json::from_str(&self.ask(method, path, body)).expect("an operation");
        let id = operation["id"].as_str().expect("an id");
        // The stream of its events ends with it.
        let events = self.ask("GET", &format!("/v1/operations/{id}/events"), None);
        assert!(events.contains("succeeded"), "{method} {path}: {events}");
    }

    /// Makes a small VM that is not started.
    ///
    /// # Panics
    /// If that fails.
    pub fn create(&self, name: &str) {
        let spec = json!({
            "image": "debian-bookworm", "engine": "auto", "cpus": 1, "memory_mib": 256
        });
        self.finish("POST", "/v1/vms", Some(&json!({ "name": name, "spec": spec })));
    }

    /// Removes a VM.
    ///
    /// # Panics
    /// If that fails.
    pub fn remove(&self, name: &str) {
        self.finish("DELETE", &format!("/v1/vms/{name}"), None);
    }

    /// Waits until a daemon that is starting answers, and gives all VMs.
    ///
    /// # Panics
    /// If none does.
    pub fn first_answer(&self) -> Vec<Value> {
        let answer = wait::closely("the daemon answers", PATIENCE, || {
            let stream = UnixStream::connect(&self.socket).ok()?;
            exchange(stream, "GET", "/v1/vms", None).ok().filter(|answer| !answer.is_empty())
        });
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).expect("a list")
    }
}

fn exchange(
    mut stream: UnixStream,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: banger\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
