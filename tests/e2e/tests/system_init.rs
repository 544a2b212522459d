//! Images that are whole systems.

use std::time::Duration;

use banger_testkit::Host;
use banger_testkit::fixtures::Fixtures;

/// systemd under emulation starts a dozen services.
const SYSTEM_BOOT: Duration = Duration::from_secs(240);

/// "An image with systemd boots with `--init system` and reaches multi-user; ssh host keys and
/// machine-id are not shared between VMs." The keys were made when the image was.
#[test]
fn systemd_reaches_multi_user_with_an_identity_of_its_own() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let image = registry.reference("system:1");
    let mut identities = Vec::new();
    for name in ["first", "second"] {
        let options = ["run", "-d", "-q", "--init", "system", "-m", "512", "--name", name];
        host.banger([&options[..], &[&image]].concat()).timeout(SYSTEM_BOOT).run().assert_ok();
        let exec = |words: &[&str]| {
            host.banger([&["exec", name, "--"], words].concat()).timeout(SYSTEM_BOOT).run()
        };
        exec(&["cat", "/proc/1/comm"]).assert_ok().assert_stdout("systemd\n");
        let state = exec(&["systemctl", "is-system-running", "--wait"]);
        let failed = exec(&["systemctl", "--failed", "--no-legend"]);
        assert_eq!(state.stdout_text(), "running\n", "{failed}");
        exec(&["systemctl", "is-active", "multi-user.target", "ssh.service"])
            .assert_ok()
            .assert_stdout("active\nactive\n");
        exec(&["hostname"]).assert_ok().assert_stdout(&format!("{name}\n"));
        let script = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub";
        let identity = exec(&["sh", "-c", script]).assert_ok().stdout_text();
        identities.push(identity.lines().map(str::to_owned).collect::<Vec<_>>());
        host.banger(["stop", name]).timeout(SYSTEM_BOOT).run().assert_ok();
        assert_eq!(host.state(name).as_deref(), Some("stopped"));
        let end = host.show(name)["status"]["end"].clone();
        assert!(!end.to_string().contains("kill"), "it went down by itself: {end}");
    }
    for (first, second) in identities[0].iter().zip(&identities[1]) {
        assert_ne!(first, second);
    }
    assert_eq!(identities[0].len(), 2, "{identities:?}");
    host.finish();
}
