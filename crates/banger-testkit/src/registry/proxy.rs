//! A proxy in front of a registry that misbehaves as it is told, and counts.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::faults::{Fault, When};
use super::http::{Head, Request};

type Rule = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// A proxy that lives as long as this value. It also does what a forward proxy does: takes absolute
/// URLs and `CONNECT`, and leads them all to the one registry behind it.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: String,
    state: Mutex<State>,
    stopping: Condvar,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    requests: Vec<Request>,
    /// Bytes of answers' bodies, with the paths they were of.
    served: Vec<(String, u64)>,
    connections: Vec<TcpStream>,
    stopped: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream`, `127.0.0.1:PORT`.
    ///
    /// # Panics
    /// If there is no free port.
    #[must_use]
    pub fn start(upstream: impl Into<String>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream: upstream.into(),
            state: Mutex::default(),
            stopping: Condvar::new(),
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The whole reference of something in the registry behind it.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// From now on this goes wrong then. Of several faults for one request the oldest happens.
    pub fn fault(&self, mut when: When, fault: Fault) {
        self.rule(move |request| when.is_now(request).then(|| fault.clone()));
    }

    /// From now on `decide` is asked for every request that no older rule wants.
    pub fn rule(&self, decide: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        self.shared.state().rules.push(Box::new(decide));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
    }

    /// Every request since the beginning or the last [`FaultProxy::forget`].
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// How many requests there were with that method and that in their path.
    #[must_use]
    pub fn count(&self, method: &str, target: &str) -> usize {
        let fits = |request: &&Request| request.method == method && request.target.contains(target);
        self.shared.state().requests.iter().filter(fits).count()
    }

    /// How many bytes of bodies were sent for paths with that in them.
    #[must_use]
    pub fn bytes(&self, target: &str) -> u64 {
        let state = self.shared.state();
        state.served.iter().filter(|(path, _)| path.contains(target)).map(|(_, bytes)| bytes).sum()
    }

    /// Begins counting anew.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.requests.clear();
        state.served.clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stopped = true;
            for connection in &state.connections {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.stopping.notify_all();
        // Whoever waits for a connection gets one.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock")
    }

    fn fault_for(&self, request: &Request) -> Option<Fault> {
        let mut state = self.state();
        state.requests.push(request.clone());
        state.rules.iter_mut().find_map(|rule| rule(request))
    }

    /// Wait for the proxy's end.
    fn stall(&self) {
        let mut state = self.state();
        while !state.stopped {
            state = self.stopping.wait(state).expect("nobody panics with the lock");
        }
    }

    fn count(&self, target: &str, bytes: u64) {
        let mut state = self.state();
        match state.served.iter_mut().find(|(path, _)| path == target) {
            Some((_, sum)) => *sum += bytes,
            None => state.served.push((target.to_owned(), bytes)),
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        {
            let mut state = shared.state();
            if state.stopped {
                return;
            }
            state.connections.push(stream.try_clone().expect("a free descriptor"));
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away is none of our business.
            let _ = serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Serve the one request of a connection.
fn serve(mut client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Some(mut head) = Head::read(&mut client)? else {
        return client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    };
    let mut words = head.first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = path_of(words.next().unwrap_or_default()).to_owned();
    let form = read_form(&mut client, &head)?;
    let request = Request { method, target, headers: head.headers.clone(), form };
    let fault = shared.fault_for(&request);
    if let Some(Fault::Answer { status, headers, body }) = &fault {
        // What the client still sends would make its end of the connection fail before it reads.
        let unread = head.content_length() - request.form.len() as u64;
        io::copy(&mut client.take(unread), &mut io::sink())?;
        return answer(client, &request, (*status, headers, body));
    }
    if request.method == "CONNECT" {
        return tunnel(client, shared);
    }
    let target = match &fault {
        Some(Fault::Silence) => {
            shared.stall();
            return Ok(());
        }
        Some(Fault::Rewrite(from, to)) => request.target.replacen(from, to, 1),
        _ => request.target.clone(),
    };
    if fault == Some(Fault::IgnoreRange) {
        head.remove("range");
    }
    head.first = format!("{} {target} HTTP/1.1", request.method);
    head.set("connection", "close");
    let mut upstream = TcpStream::connect(&shared.upstream)?;
    head.write(&mut upstream)?;
    let body = match fault {
        Some(Fault::DropRequestAfter(bytes)) => {
            io::copy(&mut client.take(bytes.min(head.content_length())), &mut upstream)?;
            return Ok(());
        }
        _ => head.content_length() - request.form.len() as u64,
    };
    upstream.write_all(request.form.as_bytes())?;
    io::copy(&mut client.take(body), &mut upstream)?;
    relay(client, &mut upstream, &request, (fault, shared))
}

/// The body of a request with a form, which is short.
fn read_form(client: &mut impl Read, head: &Head) -> io::Result<String> {
    let is_form = |kind: &str| kind.starts_with("application/x-www-form-urlencoded");
    let mut form = String::new();
    if head.header("content-type").is_some_and(is_form) {
        client.take(head.content_length().min(64 * 1024)).read_to_string(&mut form)?;
    }
    Ok(form)
}

/// Pass the answer on, with its fault.
fn relay(
    mut client: &TcpStream,
    upstream: &mut TcpStream,
    request: &Request,
    (fault, shared): (Option<Fault>, &Shared),
) -> io::Result<()> {
    let mut head = Head::read(upstream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    head.set("connection", "close");
    let length = head.content_length();
    let mut limit = u64::MAX;
    let mut extra = 0;
    match &fault {
        Some(Fault::Truncate(bytes)) => {
            limit = *bytes;
            head.set("content-length", length.min(limit).to_string());
        }
        Some(Fault::Extend(bytes)) => {
            extra = *bytes;
            head.set("content-length", (length + extra).to_string());
        }
        Some(Fault::DropAfter(bytes) | Fault::Stall(bytes)) => limit = *bytes,
        Some(Fault::Header(name, Some(value))) => head.set(&name.to_lowercase(), value.clone()),
        Some(Fault::Header(name, None)) => head.remove(&name.to_lowercase()),
        _ => {}
    }
    head.write(&mut client)?;
    let corrupt = if let Some(Fault::Corrupt(at)) = fault { Some(at) } else { None };
    let mut at = 0;
    let mut buffer = vec![0; 64 * 1024];
    while at < limit {
        let room = usize::try_from(limit - at).unwrap_or(usize::MAX).min(buffer.len());
        let count = upstream.read(&mut buffer[..room])?;
        if count == 0 {
            break;
        }
        let next = at + count as u64;
        if let Some(place) = corrupt.filter(|place| (at..next).contains(place)) {
            buffer[usize::try_from(place - at).expect("inside the buffer")] ^= 0x55;
        }
        client.write_all(&buffer[..count])?;
        shared.count(&request.target, count as u64);
        at = next;
    }
    io::copy(&mut io::repeat(b'x').take(extra), &mut client)?;
    if matches!(fault, Some(Fault::Stall(_))) {
        shared.stall();
    }
    Ok(())
}

fn answer(
    mut client: &TcpStream,
    request: &Request,
    (status, headers, body): (u16, &[(String, String)], &[u8]),
) -> io::Result<()> {
    let mut answer = Head { first: format!("HTTP/1.1 {status} Told"), headers: headers.to_vec() };
    answer.set("content-length", body.len().to_string());
    answer.set("connection", "close");
    answer.write(&mut client)?;
    if request.method == "HEAD" { Ok(()) } else { client.write_all(body) }
}

/// Carry bytes both ways until both sides are done.
fn tunnel(mut client: &TcpStream, shared: &Shared) -> io::Result<()> {
    let upstream = TcpStream::connect(&shared.upstream)?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &upstream, &mut &*client);
            let _ = client.shutdown(Shutdown::Both);
        });
        let _ = io::copy(&mut &*client, &mut &upstream);
        let _ = upstream.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// The path of a request's target, which for a forward proxy is a whole URL.
fn path_of(target: &str) -> &str {
    let Some((_, rest)) = target.split_once("://").filter(|(scheme, _)| !scheme.contains('/'))
    else {
        return target;
    };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}
