//! "the guest has the internet the host has, and cannot reach the host's loopback"

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use banger_e2e::SOON;
use banger_testkit::{Host, skip, wait};

/// A server that says one word to whoever connects.
fn serve(listener: TcpListener, word: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that is gone hears nothing.
            let _ = { stream }.write_all(word.as_bytes());
        }
    });
}

/// What a guest hears from an address: a word, or nothing.
fn heard_in_guest(host: &Host, vm: &str, address: SocketAddr) -> String {
    let script = format!(
        "import socket\n\
         try:\n s = socket.create_connection(('{}', {}), 3)\n s.settimeout(3)\n \
         print(s.recv(100).decode(), end='')\n\
         except OSError as e:\n print('nothing:', e)",
        address.ip(),
        address.port()
    );
    host.banger(["exec", vm, "--", "python3", "-c", &script]).run().assert_ok().stdout_text()
}

/// The host's address towards the outside; no packet is sent.
pub(crate) fn address_of_this_host() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// "cannot reach the host's loopback"; "packets to … every address of the host's own interfaces are
/// dropped (`--net host-access` opens them)"
#[test]
fn the_guest_does_not_reach_the_host() {
    let host = Host::new();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    serve(listener, "caught");
    let vm = host.running_vm("fenced");
    let mut targets = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    ];
    targets.extend(address_of_this_host());
    for target in targets {
        let heard = heard_in_guest(&host, &vm, SocketAddr::new(target, port));
        assert!(heard.starts_with("nothing"), "the guest reached {target}: {heard}");
    }
    if let Some(address) = address_of_this_host() {
        let options = ["run", "-d", "--name", "open", "--net", "host-access"];
        host.banger(options).run().assert_ok();
        let heard = heard_in_guest(&host, "open", SocketAddr::new(address, port));
        assert_eq!(heard, "caught", "host-access opens the host's own addresses");
    }
    host.finish();
}

/// "the LAN stays reachable"
#[test]
fn the_guest_reaches_the_network_beyond_the_host() {
    if !nix::unistd::Uid::effective().is_root() {
        return skip("making a neighbouring network needs root");
    }
    let Some(neighbour) = Neighbour::create() else {
        return skip("this host lets nobody make network devices");
    };
    let host = Host::new();
    neighbour.serve("welcome");
    let vm = host.running_vm("traveller");
    assert_eq!(heard_in_guest(&host, &vm, neighbour.address()), "welcome");
    host.finish();
}

/// "DNS in the guest works": it answers what the host's own resolver answers.
#[test]
fn names_resolve_as_on_the_host() {
    let host = Host::new();
    let vm = host.running_vm("asker");
    let resolver = host.banger(["exec", &vm, "--", "cat", "/etc/resolv.conf"]).run().assert_ok();
    assert!(resolver.stdout_text().contains("nameserver 172.30.0.1"), "{resolver}");
    let ask = "import socket\ntry:\n print(socket.gethostbyname('example.org'))\n\
               except socket.gaierror as e:\n print('no answer', e.errno)";
    let here = host.program(Path::new("/usr/bin/getent"), ["ahostsv4", "example.org"]).run();
    let guest = host.banger(["exec", &vm, "--", "python3", "-c", ask]).run().assert_ok();
    if here.code == 0 {
        assert!(!guest.stdout_text().starts_with("no answer"), "the host resolves it: {guest}");
    } else {
        skip("the host itself resolves no outside name, so the guest's answer proves nothing");
        assert!(guest.stdout_text().starts_with("no answer"), "{guest}");
    }
    host.finish();
}

/// Two machines are strangers: both have the same address, in networks of their own.
#[test]
fn machines_do_not_see_each_other() {
    let host = Host::new();
    let one = host.running_vm("one");
    let two = host.running_vm("two");
    let serve = "import socket\ns = socket.create_server(('', 8000))\n\
                 while True: s.accept()[0].sendall(b'caught')";
    let serve = format!("nohup python3 -c \"{serve}\" >/dev/null 2>&1 &");
    host.banger(["exec", &one, "--", "sh", "-c", &serve]).run().assert_ok();
    for own in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(172, 30, 0, 2)] {
        let itself = SocketAddr::new(own.into(), 8000);
        wait::until("it hears itself", SOON, || {
            (heard_in_guest(&host, &one, itself) == "caught").then_some(())
        });
    }
    for last in [1, 2, 3] {
        let target = SocketAddr::new(Ipv4Addr::new(172, 30, 0, last).into(), 8000);
        let heard = heard_in_guest(&host, &two, target);
        assert!(heard.starts_with("nothing"), "{target}: {heard}");
    }
    host.finish();
}

/// A network namespace that is connected to the host like a neighbour in the LAN.
struct Neighbour {
    name: String,
    subnet: [u8; 3],
}

impl Neighbour {
    const PORT: u16 = 8080;

    fn create() -> Option<Self> {
        let pid = std::process::id();
        let third = u8::try_from(pid % 250).expect("less than 256");
        let neighbour = Self { name: format!("bngr{pid}"), subnet: [10, 201, third] };
        let name = &neighbour.name;
        let [a, b, c] = neighbour.subnet;
        let made = [
            format!("netns add {name}"),
            format!("link add {name}h type veth peer name {name}n netns {name}"),
            format!("addr add {a}.{b}.{c}.1/24 dev {name}h"),
            format!("link set {name}h up"),
            format!("-n {name} addr add {a}.{b}.{c}.2/24 dev {name}n"),
            format!("-n {name} link set {name}n up"),
        ]
        .iter()
        .all(|line| ip(line));
        made.then_some(neighbour)
    }

    fn address(&self) -> SocketAddr {
        let [a, b, c] = self.subnet;
        SocketAddr::new(Ipv4Addr::new(a, b, c, 2).into(), Self::PORT)
    }

    /// Listens inside the namespace, which is a property of the thread that makes the socket.
    fn serve(&self, word: &'static str) {
        let namespace =
            std::fs::File::open(format!("/run/netns/{}", self.name)).expect("it is there");
        let listener = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("we are root");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, Self::PORT)).expect("its ports are free")
        });
        serve(listener.join().expect("the thread does not panic"), word);
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        ip(&format!("link del {}h", self.name));
        ip(&format!("netns del {}", self.name));
    }
}

#[allow(clippy::disallowed_methods, reason = "a test sets up the network around it")]
fn ip(line: &str) -> bool {
    Command::new("ip").args(line.split(' ')).status().is_ok_and(|status| status.success())
}
