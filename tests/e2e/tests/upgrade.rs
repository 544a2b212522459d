//! "A newer and an older daemon version over a running shim and agent (protocol versions
//! negotiated …)". Who stands between the daemon and a real shim here says who the shim is: one of
//! an earlier release, of a later one, or of one that cannot be talked to.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use banger_testkit::Host;
use serde_json::json;

/// Stands where a VM's shim listened.
struct Between {
    socket: PathBuf,
    real: PathBuf,
    hello: Arc<Mutex<String>>,
    /// Where it is reached when the VM's directory has gone.
    door: PathBuf,
    over: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Between {
    fn of(host: &Host, vm: &str) -> Self {
        let run = host.vm_dir(vm).join("run");
        let (socket, real) = (run.join("shim.sock"), run.join("real.sock"));
        std::fs::rename(&socket, &real).expect("the shim's socket is there");
        let door = host.scratch.join("between.sock");
        let listener = UnixListener::bind(&door).expect("its name is free");
        std::fs::hard_link(&door, &socket).expect("its place is free");
        std::os::unix::fs::lchown(&socket, Some(host.account.uid), Some(host.account.gid))
            .expect("ours");
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o600)).expect("ours");
        let hello = Arc::new(Mutex::new(String::new()));
        let (answer, to) = (Arc::clone(&hello), real.clone());
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let serving = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (answer, to) = (Arc::clone(&answer), to.clone());
                std::thread::spawn(move || pass_on(client, &answer, &to));
            }
        });
        Self { socket, real, hello, door, over, serving: Some(serving) }
    }

    fn says(&self, hello: &serde_json::Value) {
        *self.hello.lock().expect("no panic") = hello.to_string();
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if UnixStream::connect(&self.door).is_ok()
            && let Some(serving) = self.serving.take()
        {
            let _ = serving.join();
        }
        // It may have ended, and its directory with it.
        let _ = std::fs::rename(&self.real, &self.socket);
    }
}

/// Answers a hello itself, and leaves all else to the real one. A connection that breaks is over.
fn pass_on(mut client: UnixStream, hello: &Mutex<String>, real: &PathBuf) -> Option<()> {
    let mut head = [0; 4096];
    let length = client.read(&mut head).ok()?;
    if head.starts_with(b"GET /v1/hello") {
        let body = hello.lock().ok()?.clone();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        return client.write_all(answer.as_bytes()).ok();
    }
    if head.starts_with(b"POST /v1/pause") {
        // An earlier release knows of no such thing.
        let body = json!({"code": "not_found", "title": "no such route of a shim"}).to_string();
        let answer = format!(
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        return client.write_all(answer.as_bytes()).ok();
    }
    let mut server = UnixStream::connect(real).ok()?;
    server.write_all(&head[..length]).ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    let upward = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
    upward.join().ok()
}

#[test]
fn machines_of_other_releases_are_driven_or_can_at_least_be_stopped() {
    let host = Host::new();
    let vm = host.running_vm("elder");
    let id = host.show(&vm)["id"].clone();
    let shim = Between::of(&host, &vm);
    let hello = |version: &str, min: u32, max: u32| {
        json!({"protocol": {"min": min, "max": max, "epoch": 1}, "version": version, "vm_id": id,
            "of_a_later_release": [1]})
    };
    let exec = || host.banger(["exec", &vm, "--", "sh", "-c", "echo works; exit 3"]).run();
    for (version, min, max) in [("0.0.1", 0, 1), ("9.0.0", 1, 9)] {
        shim.says(&hello(version, min, max));
        host.banger(["daemon", "stop"]).run().assert_ok().assert_stderr_has("VMs go on running");
        exec().assert_code(3).assert_stdout("works\n");
        let refused = host.banger(["pause", &vm]).run().assert_code(125);
        refused.assert_stderr_has("older release").assert_stderr_has("hint: banger restart elder");
        assert_eq!(host.state(&vm).as_deref(), Some("running"), "release {version}");
    }

    shim.says(&hello("99.0.0", 50, 99));
    host.banger(["daemon", "stop"]).run().assert_ok();
    let refused = exec().assert_code(125).assert_stdout("");
    refused.clone().assert_stderr_has("99.0.0").assert_stderr_has("50 to 99");
    refused.assert_stderr_has("hint: banger restart elder");
    assert_eq!(host.state(&vm).as_deref(), Some("running"), "it keeps running");
    host.banger(["stop", &vm]).run().assert_ok();
    assert_eq!(host.state(&vm).as_deref(), Some("stopped"), "and can be stopped");
    drop(shim);
    host.finish();
}
