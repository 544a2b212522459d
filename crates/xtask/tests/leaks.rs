//! "A check that cannot fail is a defect": one leak of each kind is planted, and has to be found.
//!
//! Each case has a process, mount, network and user namespace of its own, so that it neither sees
//! nor touches the machine, and everything it plants ends with it.
#![allow(clippy::disallowed_methods, reason = "the program under test is a chore")]

use std::process::Command;

/// Runs the script, and reaps nobody else: a shell would.
const FIRST_PROCESS: &str =
    "my $script = fork; exec 'sh', '-c', $ARGV[0] if !$script; waitpid $script, 0; exit $? >> 8";

/// Runs `plant` between a snapshot and a comparison. Exit code and output of the comparison.
fn leaks_after(prepare: &str, plant: &str) -> (i32, String) {
    let script = format!(
        "set -e
         mount -t tmpfs none /dev/shm
         cd /dev/shm
         {prepare}
         $XTASK leaks snapshot before
         {plant}
         $XTASK leaks compare --patience 0 before"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--mount-proc"])
        .args(["--kill-child", "perl", "-e", FIRST_PROCESS, &script])
        .env("XTASK", env!("CARGO_BIN_EXE_xtask"))
        .output()
        .expect("unshare is a part of every Debian");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// Waits in the script until a command succeeds.
fn until(condition: &str) -> String {
    format!("for _ in $(seq 500); do {condition} && break; sleep 0.01; done; {condition}")
}

#[track_caller]
fn found(plant: &str, words: &[&str]) {
    let (code, text) = leaks_after("true", plant);
    assert_eq!(code, 1, "{plant}\n{text}");
    for word in words {
        let said = text.lines().any(|line| line.starts_with("left over: ") && line.contains(word));
        assert!(said, "{word} is not said to be left over\n{text}");
    }
}

#[test]
fn a_clean_machine_is_clean() {
    let (code, text) = leaks_after("true", "true; sh -c 'exit 3' || true");
    assert_eq!((code, text.trim()), (0, "nothing was left over"));
}

#[test]
fn a_process_is_found_by_its_name_and_by_its_program() {
    let plant = "cp /bin/sleep pasta; ./pasta 60 & ".to_owned()
        + &until("grep -qs '^pasta$' /proc/[0-9]*/comm")
        + "; rm pasta";
    found(&plant, &["process ", "pasta"]);
    let renamed = "cp /bin/sleep bangerd; bash -c 'exec -a innocent ./bangerd 60' & ";
    let renamed = renamed.to_owned() + &until("grep -qs bangerd /proc/[0-9]*/comm");
    found(&renamed, &["process ", "innocent"]);
}

#[test]
fn every_kind_of_namespace_is_found() {
    let plant = "unshare --user --map-root-user --mount --net --pid --fork sleep 60 & ";
    let plant = plant.to_owned() + &until("grep -qs '^sleep$' /proc/[0-9]*/comm");
    found(&plant, &["net namespace", "mnt namespace", "user namespace", "pid namespace"]);
}

#[test]
fn a_namespace_without_processes_is_found() {
    found("touch net; unshare --net=net true", &["net namespace", "mount /dev/shm/net (nsfs)"]);
}

#[test]
fn a_mount_is_found_and_a_missing_one_too() {
    found("mkdir m; mount -t tmpfs none m", &["mount /dev/shm/m (tmpfs)"]);
    let (code, text) = leaks_after("mkdir m; mount -t tmpfs none m", "umount m");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("taken away: mount /dev/shm/m"), "{text}");
}

#[test]
fn a_network_device_is_found() {
    found("ip link add name leak0 type veth peer name leak1", &["network device leak0"]);
}

#[test]
fn a_firewall_rule_is_found_also_in_a_table_that_was_there() {
    let chain = "nft add table inet t; nft add chain inet t c; nft add rule inet t c drop";
    found(chain, &["nftables, table inet t: drop"]);
    let (code, text) = leaks_after(chain, "nft add rule inet t c drop");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("left over: nftables, table inet t: drop (2)"), "{text}");
}

#[test]
fn a_listening_socket_is_found_however_it_was_bound() {
    for path in ["/dev/shm/banger.sock", "/proc/self/fd/9/api.sock"] {
        let listen = format!(
            "perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); \
             bind(S, pack_sockaddr_un(\"{path}\")) or die; listen(S, 1); sleep 60' 9</dev/shm & "
        );
        found(&(listen + &until(&format!("grep -q {path} /proc/net/unix"))), &[path]);
    }
}

#[test]
fn a_lock_is_found_with_its_holder() {
    let plant = "flock banger.lock sleep 60 & ".to_owned() + &until("! flock -n banger.lock true");
    let (code, text) = leaks_after("touch banger.lock", &plant);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("lock FLOCK WRITE on /dev/shm/banger.lock (process "), "{text}");
}

#[test]
fn an_open_deleted_file_is_found() {
    // The shell has it open before the process begins.
    let plant = "exec 9>banger-gone; sleep 60 & exec 9>&-; rm banger-gone";
    found(plant, &["deleted file /dev/shm/banger-gone"]);
}

#[test]
fn a_file_is_found_in_shared_places_and_everywhere_in_ours() {
    found("touch banger-forgotten", &["file /dev/shm/banger-forgotten"]);
    let ours = "mount -t tmpfs none /run; mkdir -p /run/banger/vms/x";
    let (code, text) = leaks_after(ours, "touch /run/banger/vms/x/tmp-1");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("left over: file /run/banger/vms/x/tmp-1"), "{text}");
}

#[test]
fn a_control_group_is_found() {
    let (code, text) = leaks_after(
        "mount -t tmpfs none /sys/fs/cgroup",
        "mkdir -p /sys/fs/cgroup/u/banger-x.scope",
    );
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("control group /sys/fs/cgroup/u/banger-x.scope"), "{text}");
}

/// "zombies whose parent is the machine's PID 1 excepted"
#[test]
fn a_zombie_counts_unless_it_is_left_to_init() {
    let zombie = "perl -e 'if (!fork) { $0 = \"bangerd\"; exit } PARENT' & ".to_owned()
        + &until("grep -qs 'bangerd) Z' /proc/[0-9]*/stat");
    found(&zombie.replace("PARENT", "sleep 60"), &["bangerd"]);
    // The first process of the namespace reaps nobody here.
    let left = "perl -e 'exit if fork; if (!fork) { $0 = \"bangerd\"; exit }; exit' ".to_owned()
        + "& wait $!; "
        + &until("grep -qs 'bangerd) Z 1 ' /proc/[0-9]*/stat");
    let (code, text) = leaks_after("true", &left);
    assert_eq!((code, text.trim()), (0, "nothing was left over"));
}

#[test]
fn something_else_than_a_snapshot_is_refused() {
    let (code, text) = leaks_after("true", "echo nonsense > before");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("is no snapshot"), "{text}");
}
