//! Each kind of remains is planted, found, and goes; what is in use, or not ours, stays.

use std::os::unix::net::UnixListener;

use super::*;

const VM: &str = "0123456789ab";

struct Place {
    _root: tempfile::TempDir,
    dirs: StateDirs,
}

fn place() -> Place {
    let root = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| root.path().join(name);
    let dirs = StateDirs { data: at("data"), runtime: at("run"), config: at("config") };
    for dir in [dirs.vms(), dirs.runtime.clone(), dirs.images(), dirs.cache()] {
        fs::create_dir_all(dir).expect("writable");
    }
    Place { _root: root, dirs }
}

impl Place {
    fn vm(&self, files: &[&str]) -> PathBuf {
        let dir = self.dirs.vm(VM);
        fs::create_dir_all(dir.join("run")).expect("writable");
        for file in files {
            fs::write(dir.join(file), "x").expect("writable");
        }
        dir
    }
}

#[test]
fn nothing_is_found_where_nothing_is() {
    let place = place();
    assert_eq!(find(&place.dirs), []);
}

#[test]
fn directories_are_told_by_what_is_in_them() {
    let cases: [(&[&str], Contents); 4] = [
        (
            &["lock", "launch.json", "console.log.1", "shim.log", "status.json.tmp"],
            Contents::Replaceable,
        ),
        (&["lock", "root.cow"], Contents::Disk),
        (&["work.ext4"], Contents::Disk),
        (&["root.cow", "diary.txt"], Contents::Foreign),
    ];
    for (files, want) in cases {
        let place = place();
        place.vm(files);
        let found = find(&place.dirs);
        let [Remains::Directory { contents, locked: false, name, .. }] = &found[..] else {
            panic!("one directory: {found:?}");
        };
        assert_eq!((*contents, name.as_str()), (want, VM), "{files:?}");
    }
}

#[test]
fn a_directory_is_set_aside_once_and_again() {
    let place = place();
    for want in [VM.to_owned(), format!("{VM}-2")] {
        let dir = place.vm(&["lock", "root.cow"]);
        let to = set_aside(&place.dirs, &dir).expect("it can be moved");
        assert_eq!(to, place.dirs.data.join(SET_ASIDE).join(&want));
        assert!(to.join("root.cow").exists() && !dir.exists());
    }
    let found = find(&place.dirs);
    assert!(
        matches!(&found[..], [Remains::SetAside { .. }, Remains::SetAside { .. }]),
        "{found:?}"
    );
}

#[test]
fn what_is_alive_is_neither_moved_nor_removed() {
    let place = place();
    let dir = place.vm(&["root.cow"]);
    let _lock = OfdLock::try_acquire(&dir.join("lock")).expect("open").expect("free");
    let moved = set_aside(&place.dirs, &dir).expect_err("locked");
    assert_eq!(moved.kind(), io::ErrorKind::WouldBlock);
    let removed = remove(&place.dirs, &dir).expect_err("locked");
    assert_eq!(removed.kind(), io::ErrorKind::WouldBlock);
    assert!(dir.join("root.cow").exists());
}

#[test]
fn nothing_outside_is_removed() {
    let place = place();
    let outside = place.dirs.config.clone();
    fs::create_dir(&outside).expect("writable");
    remove(&place.dirs, &outside).expect_err("not ours");
    assert!(outside.exists());
    remove(&place.dirs, &place.dirs.data.join("missing")).expect("gone already");
}

#[test]
fn sockets_are_stale_when_nobody_holds_the_lock() {
    let place = place();
    drop(UnixListener::bind(place.dirs.api_socket()).expect("bind"));
    let sockets = |found: Vec<Remains>| {
        found.into_iter().filter(|one| matches!(one, Remains::Socket { .. })).collect::<Vec<_>>()
    };
    let stale = sockets(find(&place.dirs));
    assert_eq!(stale.len(), 1, "{stale:?}");
    let daemon = OfdLock::try_acquire(&place.dirs.daemon_lock()).expect("open").expect("free");
    assert_eq!(sockets(find(&place.dirs)), []);
    let kept = remove(&place.dirs, &place.dirs.api_socket()).expect_err("a daemon began");
    assert_eq!(kept.kind(), io::ErrorKind::WouldBlock);
    assert!(place.dirs.api_socket().exists());
    drop(daemon);
    for socket in sockets(find(&place.dirs)) {
        let Remains::Socket { path } = socket else { unreachable!("filtered") };
        remove(&place.dirs, Path::new(&path)).expect("removable");
    }
    assert_eq!(sockets(find(&place.dirs)), []);
}

#[test]
fn half_written_files_are_left_alone_for_a_while() {
    let place = place();
    let path = place.dirs.cache().join("agents.json.tmp");
    let file = fs::File::create(&path).expect("writable");
    assert_eq!(find(&place.dirs), []);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(long_ago).expect("ours");
    assert_eq!(find(&place.dirs), [Remains::Temporary { path: text(&path) }]);
}

#[test]
fn builds_and_removals_are_interrupted_when_nobody_has_them_locked() {
    let place = place();
    let build = place.dirs.images().join("tmp-1234");
    fs::create_dir(&build).expect("writable");
    let lock = OfdLock::try_acquire(&place.dirs.images().join("tmp-1234.lock"));
    let lock = lock.expect("open").expect("free");
    assert_eq!(find(&place.dirs), []);
    drop(lock);
    let removal = place.dirs.vms().join(format!(".deleting-{VM}"));
    fs::create_dir(&removal).expect("writable");
    let want = [removal, build].map(|path| Remains::Interrupted { path: text(&path) });
    assert_eq!(find(&place.dirs), want);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a process to be found")]
fn who_holds_a_lock_is_found_and_ended_and_nobody_else() {
    let place = place();
    let dir = place.vm(&["lock"]);
    let lock = dir.join("lock");
    let holder = |program: &str| {
        let script = format!("exec 9<>{}; {program} sleep 60", lock.display());
        std::process::Command::new("sh").args(["-c", &script]).spawn().expect("a shell")
    };
    let mut reader = holder("exec");
    let mut locker = holder("flock 9; exec");
    let pids = || -> Vec<u32> {
        let of = |one| match one {
            Remains::Process { pid, .. } => Some(pid),
            _ => None,
        };
        find(&place.dirs).into_iter().filter_map(of).collect()
    };
    let bound = std::time::Instant::now() + Duration::from_secs(20);
    while pids().is_empty() {
        assert!(std::time::Instant::now() < bound, "the lock is not seen");
        std::thread::yield_now();
    }
    assert_eq!(pids(), [locker.id()], "who only has the file open holds nothing");
    assert_eq!(holders_of_lock(&lock).len(), 1);
    fs::remove_dir_all(&dir).expect("removable");
    let gone = find(&place.dirs);
    assert!(
        matches!(&gone[..], [Remains::Process { without_directory: true, vm, .. }] if vm == VM),
        "{gone:?}"
    );
    assert!(!end(&place.dirs, reader.id()).expect("ask"), "no holder of the lock");
    assert!(end(&place.dirs, locker.id()).expect("end it"));
    locker.wait().expect("a child of ours");
    assert_eq!(find(&place.dirs), []);
    reader.kill().expect("a child of ours");
    reader.wait().expect("a child of ours");
}
