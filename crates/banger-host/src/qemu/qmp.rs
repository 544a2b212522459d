//! QEMU's control protocol: one JSON object per line, both ways.
//!
//! A guest that has taken over its VMM speaks here too, so every line is bounded and nothing that
//! comes is believed further than "the VMM says so".

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::logs::{printable, printable_line};

/// Longest line that is read. QEMU's own are below 100 KiB. Parsed, a line takes up to some 30 times
/// as much.
const MAX_LINE: u64 = 256 << 10;
/// How long QEMU may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Events that wait to be looked at.
pub const QUEUE: usize = 64;
/// How many processors are told of, and how many bytes of each.
const MAX_PROCESSORS: usize = 8;
const MAX_STAND: usize = 80;
/// Answers that wait. There is one for each command, and one command at a time: what is more, nobody
/// asked for.
const ANSWERS: usize = 4;

/// What QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest goes down.
    Shutdown {
        /// Whether the guest did it itself.
        guest: bool,
        /// `guest-shutdown`, `guest-reset`, `host-qmp-quit`, …
        reason: String,
    },
    /// The virtual CPUs stand still.
    Stopped,
    /// The virtual CPUs run.
    Resumed,
    /// A disk request failed, and the VM was paused because the host's disk is full.
    HostDiskFull,
    /// Something else.
    Other(String),
}

/// Why a command did not work.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection broke.
    #[error("lost the connection to QEMU")]
    Io(#[from] io::Error),
    /// QEMU does not answer.
    #[error("QEMU does not answer to {command}")]
    Timeout {
        /// The command.
        command: String,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU said what it must not say.
    #[error("QEMU's answer makes no sense: {0}")]
    Protocol(String),
}

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
    /// Of the last command.
    id: u64,
}

impl Qmp {
    /// Negotiates, and hands out the events; while [`QUEUE`] of them wait, further ones are dropped.
    ///
    /// # Errors
    /// [`QmpError`] if this is not QMP.
    pub async fn connect(stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = read_line(&mut reader).await?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol("no greeting".to_owned()));
        }
        let (answer_sender, answers) = mpsc::channel(ANSWERS);
        let (event_sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(sort_lines(reader, answer_sender, event_sender));
        let mut qmp = Self { writer, answers, id: 0 };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, events))
    }

    /// Executes a command and waits for its answer.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let line = self.line(command, &arguments);
        self.writer.write_all(line.as_bytes()).await?;
        self.answer(command).await
    }

    /// The line of the next command.
    fn line(&mut self, command: &str, arguments: &Value) -> String {
        self.id += 1;
        // Answers that nobody asked for.
        while self.answers.try_recv().is_ok() {}
        let line = json!({ "execute": command, "arguments": arguments, "id": self.id });
        format!("{line}\n")
    }

    /// The answer to the last command, not a late one to an earlier command that was given up.
    async fn own_answer(&mut self) -> Option<Value> {
        loop {
            let answer = self.answers.recv().await?;
            if answer.get("id").is_none_or(|id| id.as_u64() == Some(self.id)) {
                return Some(answer);
            }
        }
    }

    async fn answer(&mut self, command: &str) -> Result<Value, QmpError> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.own_answer())
            .await
            .map_err(|_| QmpError::Timeout { command: command.to_owned() })?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match answer {
            Value::Object(mut answer) if answer.contains_key("return") => {
                Ok(answer.remove("return").unwrap_or_default())
            }
            answer => Err(QmpError::Refused {
                command: command.to_owned(),
                description: text(&answer["error"]["desc"]),
            }),
        }
    }

    /// Gives the VMM a descriptor, by the name that later commands call it by.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn give(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let line = self.line("getfd", &json!({ "fdname": name }));
        let socket: &UnixStream = self.writer.as_ref();
        let sent = socket.async_io(Interest::WRITABLE, || send_with(socket, line.as_bytes(), fd));
        if sent.await? < line.len() {
            return Err(QmpError::Protocol("it takes no descriptor".to_owned()));
        }
        self.answer("getfd").await.map(drop)
    }

    /// Where the guest's processors stand, one line each: `CPU#0 RIP=… HLT=1`. For people who look for
    /// the reason of a hang.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn processors(&mut self) -> Result<Vec<String>, QmpError> {
        let command = json!({ "command-line": "info registers -a" });
        let told = self.execute("human-monitor-command", command).await?;
        Ok(stands(told.as_str().unwrap_or_default()))
    }
}

/// Sends bytes and a descriptor along with the first of them.
fn send_with(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let pieces = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &pieces, &message, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(Into::into)
}

/// What of QEMU's `info registers -a` says where the processors stand.
fn stands(registers: &str) -> Vec<String> {
    let mut stands: Vec<String> = Vec::new();
    for word in registers.split_whitespace() {
        if word.starts_with("CPU#") && stands.len() < MAX_PROCESSORS {
            stands.push(printable_line(word, MAX_STAND));
        } else if let Some(stand) = stands.last_mut()
            && ["RIP=", "HLT="].iter().any(|name| word.starts_with(name))
            && stand.len() + word.len() < MAX_STAND
        {
            stand.push(' ');
            stand.push_str(&printable_line(word, MAX_STAND));
        }
    }
    stands
}

async fn sort_lines(
    mut reader: BufReader<OwnedReadHalf>,
    answers: mpsc::Sender<Value>,
    events: mpsc::Sender<Event>,
) {
    while let Ok(line) = read_line(&mut reader).await {
        let delivered = match event(&line) {
            // Of no interest to anybody.
            Some(Event::Other(_)) => true,
            // Events nobody waits for must not keep answers from arriving.
            Some(event) => {
                !matches!(events.try_send(event), Err(mpsc::error::TrySendError::Closed(_)))
            }
            // Nor must answers that nobody asked for keep events from arriving, or be kept.
            None => !matches!(answers.try_send(line), Err(mpsc::error::TrySendError::Closed(_))),
        };
        if !delivered && answers.is_closed() {
            return;
        }
    }
}

fn event(line: &Value) -> Option<Event> {
    let name = line.get("event")?.as_str()?;
    let data = &line["data"];
    Some(match name {
        "SHUTDOWN" => Event::Shutdown {
            guest: data["guest"].as_bool().unwrap_or(false),
            reason: text(&data["reason"]),
        },
        "STOP" => Event::Stopped,
        "RESUME" => Event::Resumed,
        "BLOCK_IO_ERROR" if data["nospace"].as_bool() == Some(true) => Event::HostDiskFull,
        other => Event::Other(other.chars().take(64).collect()),
    })
}

fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("no reason given");
    printable(text.as_bytes()).replace('\n', " ").chars().take(500).collect()
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Result<Value, QmpError> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    serde_json::from_slice(&line).map_err(|error| QmpError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that answers each command with the next of `answers`.
    async fn fake_qemu(stream: UnixStream, greeting: &str, answers: &[&str]) {
        let (reader, mut writer) = stream.into_split();
        let mut commands = BufReader::new(reader).lines();
        writer.write_all(greeting.as_bytes()).await.expect("greet");
        for answer in answers {
            commands.next_line().await.expect("read").expect("a command");
            writer.write_all(answer.as_bytes()).await.expect("answer");
        }
    }

    #[tokio::test]
    async fn answers_and_events_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let qemu = fake_qemu(
            theirs,
            "{\"QMP\":{}}\n",
            &[
                "{\"return\":{}}\n",
                "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n{\"return\":{\"status\":\"running\"}}\n",
                "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"no such command\"}}\n",
            ],
        );
        let client = async {
            let (mut qmp, mut events) = Qmp::connect(ours).await.expect("connect");
            let status = qmp.execute("query-status", json!({})).await.expect("answer");
            assert_eq!(status["status"], "running");
            let event = events.recv().await.expect("event");
            assert_eq!(event, Event::Shutdown { guest: true, reason: "guest-reset".to_owned() });
            let refused = qmp.execute("nonsense", json!({})).await.expect_err("refused");
            assert!(refused.to_string().contains("no such command"), "{refused}");
        };
        tokio::join!(qemu, client);
    }

    #[test]
    fn where_processors_stand_is_found_among_their_registers() {
        let registers = "CPU#0\r\nRAX=0 RBX=1\r\nRIP=ffffffff81c0a5cb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0000\r\nCPU#1\r\nRIP=0 RFL=2 HLT=0\r\n";
        assert_eq!(stands(registers), ["CPU#0 RIP=ffffffff81c0a5cb HLT=1", "CPU#1 RIP=0 HLT=0"]);
        assert_eq!(stands("no registers RIP=1"), [""; 0]);
        assert_eq!(stands(&"CPU#9 ".repeat(99)).len(), MAX_PROCESSORS);
        assert!(stands(&format!("CPU#0 RIP={}", "f".repeat(999)))[0].len() < MAX_STAND);
    }

    /// Hostile guest: one that took its VMM over says what it likes.
    #[tokio::test]
    async fn answers_that_nobody_asked_for_are_dropped_and_events_still_arrive() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        let flood = async {
            theirs.write_all(b"{\"QMP\":{}}\n{\"return\":{}}\n").await.expect("greet");
            for _ in 0..1000 {
                theirs.write_all(b"{\"return\":{\"status\":\"forged\"}}\n").await.expect("flood");
            }
            let event = b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n";
            theirs.write_all(event).await.expect("an event");
            let mut commands = BufReader::new(&mut theirs).lines();
            commands.next_line().await.expect("read").expect("qmp_capabilities");
            commands.next_line().await.expect("read").expect("query-status");
            let refusal = b"{\"error\":{\"desc\":\"no\\u001b[2J\\nerror: all is lost\"}}\n";
            theirs.write_all(refusal).await.expect("answer");
        };
        let client = async {
            let (mut qmp, mut events) = Qmp::connect(ours).await.expect("connect");
            let event = events.recv().await.expect("it is not stuck behind answers");
            assert!(matches!(event, Event::Shutdown { .. }), "{event:?}");
            let error = qmp.execute("query-status", json!({})).await.expect_err("the true answer");
            assert_eq!(error.to_string(), "QEMU refused query-status: no[2J error: all is lost");
        };
        tokio::join!(flood, client);
    }

    #[tokio::test]
    async fn a_late_answer_is_not_taken_for_that_of_the_next_command() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let answers = [
            "{\"return\":{},\"id\":1}\n",
            "{\"return\":{\"of\":\"before\"},\"id\":1}\n{\"return\":{\"of\":\"this\"},\"id\":2}\n",
        ];
        let client = async {
            let (mut qmp, _events) = Qmp::connect(ours).await.expect("connect");
            let status = qmp.execute("query-status", json!({})).await.expect("answer");
            assert_eq!(status["of"], "this");
        };
        tokio::join!(fake_qemu(theirs, "{\"QMP\":{}}\n", &answers), client);
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        let flood = async {
            let chunk = vec![b'x'; 1 << 16];
            while theirs.write_all(&chunk).await.is_ok() {}
        };
        tokio::select! {
            () = flood => panic!("the client hung up before it had an error"),
            result = Qmp::connect(ours) => assert!(result.is_err()),
        }
    }
}
