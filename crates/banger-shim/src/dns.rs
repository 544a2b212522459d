//! The guest's name server: questions go to the host's resolvers, answers come back, unread.
//!
//! The sockets that the guest sees are in the VM's network namespace; the ones that ask are in the
//! host's. Resolvers on the host's loopback (systemd-resolved, dnsmasq) work therefore, although the
//! guest itself cannot reach them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Where the host keeps its resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Questions under way at once; more are dropped, as a busy name server does.
const MAX_QUESTIONS: usize = 128;
/// How long one resolver may take before the next is asked.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a TCP session may last.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest UDP answer, in bytes. Larger ones come truncated and are asked for by TCP.
const MAX_ANSWER: usize = 16 * 1024;
/// Largest UDP question, in bytes. EDNS questions are below 4 KiB.
const MAX_QUESTION: usize = 4096;

/// Tells whom to ask.
type Resolvers = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// Serves the guest's questions until the shim ends.
pub(crate) fn serve(udp: UdpSocket, tcp: TcpListener) {
    serve_by(Arc::new(resolvers), udp, tcp);
}

fn serve_by(resolvers: Resolvers, udp: UdpSocket, tcp: TcpListener) {
    let slots = Arc::new(Semaphore::new(MAX_QUESTIONS));
    tokio::spawn(serve_udp(Arc::clone(&resolvers), Arc::new(udp), Arc::clone(&slots)));
    tokio::spawn(serve_tcp(resolvers, tcp, slots));
}

async fn serve_udp(resolvers: Resolvers, socket: Arc<UdpSocket>, slots: Arc<Semaphore>) {
    let mut question = vec![0; MAX_QUESTION];
    loop {
        let Ok((count, asker)) = socket.recv_from(&mut question).await else { continue };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (socket, question) = (Arc::clone(&socket), question[..count].to_vec());
        let resolvers = resolvers();
        tokio::spawn(async move {
            let _slot = slot;
            for resolver in resolvers {
                if let Ok(Ok(answer)) =
                    tokio::time::timeout(RESOLVER_TIMEOUT, ask(resolver, &question)).await
                {
                    // A guest that does not listen any more does not matter.
                    let _ = socket.send_to(&answer, asker).await;
                    return;
                }
            }
        });
    }
}

async fn ask(resolver: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_ANSWER];
    loop {
        let count = socket.recv(&mut answer).await?;
        // The first two bytes are the question's id.
        if answer.get(..2) == question.get(..2) && count >= 2 {
            answer.truncate(count);
            return Ok(answer);
        }
    }
}

async fn serve_tcp(resolvers: Resolvers, listener: TcpListener, slots: Arc<Semaphore>) {
    loop {
        let Ok((guest, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let resolvers = resolvers();
        tokio::spawn(async move {
            let _slot = slot;
            // Its end, however it comes, is the guest's to see.
            let _ = tokio::time::timeout(SESSION_TIMEOUT, relay(resolvers, guest)).await;
        });
    }
}

async fn relay(resolvers: Vec<SocketAddr>, mut guest: TcpStream) -> std::io::Result<()> {
    for resolver in resolvers {
        if let Ok(Ok(mut upstream)) =
            tokio::time::timeout(RESOLVER_TIMEOUT, TcpStream::connect(resolver)).await
        {
            // Both directions by hand: `copy_bidirectional` keeps 8 KiB each, and so does this.
            let (mut from_guest, mut to_guest) = guest.split();
            let (mut from_upstream, mut to_upstream) = upstream.split();
            let (asked, _answered) = tokio::join!(
                copy(&mut from_guest, &mut to_upstream),
                copy(&mut from_upstream, &mut to_guest)
            );
            return asked;
        }
    }
    Ok(())
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> std::io::Result<()> {
    tokio::io::copy(from, to).await?;
    to.shutdown().await
}

/// The host's resolvers now: a laptop's change with its network.
fn resolvers() -> Vec<SocketAddr> {
    parse_resolvers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// The search domains of the host.
pub(crate) fn search_domains() -> Vec<String> {
    parse_search(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn parse_resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    let resolvers: Vec<SocketAddr> = words(resolv_conf, "nameserver")
        .filter_map(|rest| rest.split_whitespace().next())
        // A zone (`fe80::1%eth0`) is not understood by the parser, nor worth it here.
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect();
    if resolvers.is_empty() {
        // What resolv.conf(5) says a missing entry means.
        return vec![([127, 0, 0, 1], 53).into()];
    }
    resolvers
}

fn parse_search(resolv_conf: &str) -> Vec<String> {
    // The last of several lines counts.
    words(resolv_conf, "search")
        .last()
        .map(|rest| rest.split_whitespace().filter(|d| *d != ".").map(str::to_owned).collect())
        .unwrap_or_default()
}

fn words<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(keyword)?;
        rest.starts_with([' ', '\t']).then_some(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);
    const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

    async fn sockets() -> (UdpSocket, TcpListener) {
        let udp = UdpSocket::bind(SocketAddr::from(LOOPBACK)).await.expect("a socket");
        let tcp = TcpListener::bind(SocketAddr::from(LOOPBACK)).await.expect("a socket");
        (udp, tcp)
    }

    /// Hostile guest: one that asks and asks takes no more than its share of the host.
    #[tokio::test]
    async fn more_questions_than_are_allowed_are_dropped() {
        const ASKED: usize = MAX_QUESTIONS + 40;
        // A resolver that hears everything and answers nothing.
        let (_silent, resolver) = sockets().await;
        let address = resolver.local_addr().expect("an address");
        let (udp, tcp) = sockets().await;
        let server = tcp.local_addr().expect("an address");
        serve_by(Arc::new(move || vec![address]), udp, tcp);
        let mut guests = tokio::task::JoinSet::new();
        for _ in 0..ASKED {
            let mut guest = TcpStream::connect(server).await.expect("connected");
            guests.spawn(async move { guest.read(&mut [0]).await });
        }
        let mut heard = Vec::new();
        while heard.len() < MAX_QUESTIONS {
            let accepted = tokio::time::timeout(BOUND, resolver.accept()).await;
            heard.push(accepted.expect("as many as are allowed").expect("accepted"));
        }
        for _ in MAX_QUESTIONS..ASKED {
            let refused = tokio::time::timeout(BOUND, guests.join_next()).await;
            let end = refused.expect("the others are dropped").expect("one").expect("no panic");
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
        // Whoever is done makes place for the next.
        heard.clear();
        let taken = async {
            loop {
                let mut next = TcpStream::connect(server).await.expect("connected");
                let mut end = [0];
                tokio::select! {
                    accepted = resolver.accept() => return accepted.expect("accepted"),
                    // Too early: no place is free yet.
                    _ = next.read(&mut end) => {}
                }
            }
        };
        tokio::time::timeout(BOUND, taken).await.expect("it is heard");
    }

    /// Hostile guest: a question is as long as a question can be.
    #[tokio::test]
    async fn a_question_is_cut_to_its_bound() {
        let (resolver, _tcp) = sockets().await;
        let address = resolver.local_addr().expect("an address");
        let (udp, tcp) = sockets().await;
        let server = udp.local_addr().expect("an address");
        serve_by(Arc::new(move || vec![address]), udp, tcp);
        let guest = UdpSocket::bind(SocketAddr::from(LOOPBACK)).await.expect("a socket");
        guest.send_to(&[7; 4 * MAX_QUESTION], server).await.expect("sent");
        let mut heard = vec![0; 8 * MAX_QUESTION];
        let received = tokio::time::timeout(BOUND, resolver.recv_from(&mut heard)).await;
        assert_eq!(received.expect("heard").expect("received").0, MAX_QUESTION);
    }

    #[test]
    fn resolv_conf_is_read_as_resolvers_read_it() {
        let text = "# comment\nnameserver 10.0.0.1\nnameserver\t::1 # mine\nnameserver nonsense\n\
                    search a.example b.example\nnameservers 1.2.3.4\nsearch c.example .\n";
        let want: Vec<SocketAddr> =
            vec![([10, 0, 0, 1], 53).into(), "[::1]:53".parse().expect("v6")];
        assert_eq!(parse_resolvers(text), want);
        assert_eq!(parse_search(text), ["c.example"]);
        assert_eq!(parse_resolvers(""), vec![SocketAddr::from(([127, 0, 0, 1], 53))]);
    }
}
