use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// An answer to the call with this serial.
fn answer(kind: u8, serial: u32, error: Option<(&str, &str)>) -> Vec<u8> {
    let mut body = Writer::default();
    if let Some((_, text)) = error {
        body.string(text);
    }
    let body = body.into_bytes();
    let mut message = Writer::default();
    message.bytes(&[b'l', kind, 1, 1]);
    message.number(u32::try_from(body.len()).expect("short"));
    message.number(77);
    message.array(8, |fields| {
        fields.bytes(&[REPLY_SERIAL]);
        fields.signature("u");
        fields.number(serial);
        if let Some((name, _)) = error {
            fields.align(8);
            fields.bytes(&[ERROR_NAME]);
            fields.signature("s");
            fields.string(name);
            fields.align(8);
            fields.bytes(&[SIGNATURE]);
            fields.signature("g");
            fields.signature("s");
        }
    });
    message.align(8);
    message.bytes(&body);
    message.into_bytes()
}

/// A bus that admits everybody, says `answers` after each call, and returns what it was told.
fn serve(listener: UnixListener, answers: Vec<Vec<u8>>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let said = read_line(&mut stream).expect("a greeting");
        assert!(said.starts_with("\0AUTH EXTERNAL 31303030"), "{said:?}");
        stream.write_all(b"OK 0123\r\n").expect("it listens");
        assert_eq!(read_line(&mut stream).expect("it begins"), "BEGIN");
        for answer in answers {
            // Who has heard enough hangs up.
            let _ = stream.write_all(&answer);
        }
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
        told
    })
}

fn talk(answers: Vec<Vec<u8>>) -> (Result<(), BusError>, Vec<u8>) {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let socket = tmp.path().join("bus");
    let listener = UnixListener::bind(&socket).expect("a short path");
    let server = serve(listener, answers);
    let outcome = Bus::connect(&socket, 1000, Duration::from_secs(5)).and_then(|mut bus| {
        let mut body = Writer::default();
        body.string("a.scope");
        bus.call("StopUnit", "s", &body.into_bytes())
    });
    (outcome, server.join().expect("the server ends"))
}

#[test]
fn a_call_is_answered_whatever_comes_between() {
    let signal = answer(4, 2, None);
    let answers = vec![answer(RETURN, 1, None), answer(RETURN, 1, None), signal];
    let (outcome, _) = talk([answers, vec![answer(RETURN, 2, None)]].concat());
    assert!(matches!(outcome, Err(BusError::Malformed)), "a signal answers nothing");
    let (outcome, told) = talk(vec![answer(RETURN, 1, None), answer(RETURN, 2, None)]);
    outcome.expect("it was answered");
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("Hello") && told.contains("StopUnit") && told.contains("a.scope"));
}

#[test]
fn a_refusal_has_a_name_and_words() {
    let refusal = answer(ERROR, 2, Some(("org.test.No", "not today")));
    let (outcome, _) = talk(vec![answer(RETURN, 1, None), refusal]);
    assert_eq!(outcome.expect_err("refused").to_string(), "org.test.No: not today");
}

#[test]
fn values_stand_where_dbus_wants_them() {
    let mut writer = Writer::default();
    writer.string("ab");
    writer.array(8, |items| items.property("n", "t", |value| value.long(5)));
    let bytes = writer.into_bytes();
    assert_eq!(bytes[..8], [2, 0, 0, 0, b'a', b'b', 0, 0]);
    // Length 24: the name with its end, the type, the gap, the number; the array begins at 16.
    assert_eq!(bytes[8..12], 24_u32.to_le_bytes());
    assert_eq!(bytes.len(), 40);
}

#[test]
fn no_damaged_or_cut_answer_is_a_panic() {
    let whole = answer(ERROR, 2, Some(("org.test.No", "not today")));
    for at in 0..whole.len() {
        assert!(read_message(&mut &whole[..at]).is_err(), "cut at {at}");
        for byte in 0..=u8::MAX {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let _ = read_message(&mut bytes.as_slice());
        }
    }
}

/// What systemd says to a scope's controller, or something like it.
fn signal(interface: &str, member: &str) -> Vec<u8> {
    let mut message = Writer::default();
    message.bytes(&[b'l', SIGNAL, 1, 1]);
    message.number(0);
    message.number(78);
    message.array(8, |fields| {
        for (code, kind, value) in
            [(PATH, "o", "/org/test/unit"), (INTERFACE, "s", interface), (MEMBER, "s", member)]
        {
            fields.align(8);
            fields.bytes(&[code]);
            fields.signature(kind);
            fields.string(value);
        }
    });
    message.align(8);
    message.into_bytes()
}

#[tokio::test]
async fn only_the_signal_that_is_waited_for_counts() {
    let others = [
        signal("org.test.Scope", "Other"),
        signal("org.test.Other", "RequestStop"),
        answer(RETURN, 1, None),
        answer(ERROR, 2, Some(("org.test.No", "RequestStop"))),
    ]
    .concat();
    let told = [others.clone(), signal("org.test.Scope", "RequestStop")].concat();
    let wait =
        async |said: &[u8]| wait_for_signal(&mut &*said, "org.test.Scope", "RequestStop").await;
    wait(&told).await.expect("it was told");
    for at in others.len()..told.len() {
        assert!(matches!(wait(&told[..at]).await, Err(BusError::Io(_))), "hung up at {at}");
    }
}
