//! Tests of references: a table of what Docker takes and refuses, and properties.

use super::*;
use proptest::prelude::*;
use proptest::string::string_regex;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn references_are_read_as_docker_reads_them() {
    let cases = [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/a/b/c:x", "docker.io/a/b/c:x", "a/b/c:x"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
        ("docker.io/localhost/x", "docker.io/localhost/x:latest", "docker.io/localhost/x:latest"),
        ("localhost:5000/a/b:tag", "localhost:5000/a/b:tag", "localhost:5000/a/b:tag"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("example.com/app", "example.com/app:latest", "example.com/app:latest"),
        ("Example.com/app", "Example.com/app:latest", "Example.com/app:latest"),
        ("HOST/app", "HOST/app:latest", "HOST/app:latest"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "127.0.0.1:5000/x:latest"),
        ("[::1]/x", "[::1]/x:latest", "[::1]/x:latest"),
        ("[2001:db8::7]:5000/a/b:1", "[2001:db8::7]:5000/a/b:1", "[2001:db8::7]:5000/a/b:1"),
        ("a_b/c__d.e-f---g", "docker.io/a_b/c__d.e-f---g:latest", "a_b/c__d.e-f---g:latest"),
        ("x:_T.0-", "docker.io/library/x:_T.0-", "x:_T.0-"),
    ];
    for (text, canonical, familiar) in cases {
        let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.canonical(), canonical, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
        assert_eq!(Reference::parse(familiar), Ok(reference), "{text}");
    }
}

#[test]
fn a_digest_stands_beside_or_instead_of_a_tag() {
    let digest = format!("sha256:{HEX}");
    let bare = Reference::parse(&format!("alpine@{digest}")).expect("a reference");
    assert_eq!((bare.tag(), bare.digest().map(Digest::as_str)), (None, Some(&*digest)));
    assert_eq!(bare.canonical(), format!("docker.io/library/alpine@{digest}"));
    let both = Reference::parse(&format!("localhost:5000/a/b:tag@{digest}")).expect("a reference");
    assert_eq!(
        (both.registry(), both.repository(), both.tag()),
        ("localhost:5000", "a/b", Some("tag"))
    );
    assert_eq!(both.familiar(), format!("localhost:5000/a/b:tag@{digest}"));
    let moved = both.with_tag("v2").expect("a tag");
    assert_eq!(moved.canonical(), "localhost:5000/a/b:v2");
    assert_eq!(moved.with_digest(Digest::parse(&digest).expect("one")).tag(), Some("v2"));
    assert!(both.with_tag("v 2").is_err());
}

const WRONG: &[(&str, &str)] = &[
    ("", "the name of an image cannot be empty"),
    (":tag", "the name of an image cannot be empty"),
    ("https://docker.io/alpine", "an image is named without https://: HOST/NAME:TAG"),
    ("docker://alpine", "an image is named without docker://: HOST/NAME:TAG"),
    ("Alpine", "the name of an image is lower-case: alpine, not Alpine"),
    ("user/My/App", "the name of an image is lower-case: user/my/app, not user/My/App"),
    ("a//b", "\"\" cannot be part of an image's name: it is empty (is there a slash too many?)"),
    ("a/", "\"\" cannot be part of an image's name: it is empty (is there a slash too many?)"),
    ("-x", "\"-x\" cannot be part of an image's name: it begins and ends with a letter or a digit"),
    (
        "a b",
        "\"a b\" cannot be part of an image's name: it has only lower-case letters, digits, dots, hyphens and underscores",
    ),
    (
        "../../etc",
        "\"..\" is not the name of a registry: a host name has letters, digits, hyphens and dots between them",
    ),
    (
        "a/../etc",
        "\"..\" cannot be part of an image's name: it begins and ends with a letter or a digit",
    ),
    (
        "a..b",
        "\"a..b\" cannot be part of an image's name: between letters and digits stands one dot, one or two underscores, or hyphens",
    ),
    ("x:", "\"\" is not a tag: it is empty"),
    ("x:.y", "\".y\" is not a tag: a tag begins with a letter, a digit or an underscore"),
    (
        "x:a b",
        "\"a b\" is not a tag: a tag has only letters, digits, underscores, dots and hyphens",
    ),
    (
        "a@sha256:abc",
        "\"sha256:abc\" is not a digest: that is sha256: and 64 lower-case hex digits",
    ),
    ("a@latest", "\"latest\" is not a digest: that is sha256: and 64 lower-case hex digits"),
    ("host:0/x", "\"host:0\" is not the name of a registry: its port is no number from 1 to 65535"),
    (
        "host:+5/x",
        "\"host:+5\" is not the name of a registry: its port is no number from 1 to 65535",
    ),
    (
        "ho_st.x/y",
        "\"ho_st.x\" is not the name of a registry: a host name has letters, digits, hyphens and dots between them",
    ),
    (":5000/x", "\":5000\" is not the name of a registry: there is no name before the port"),
    ("[::1/x", "\"[::1\" is not the name of a registry: its address has no closing bracket"),
    (
        "[1.2]/x",
        "\"[1.2]\" is not the name of a registry: what stands in brackets is no IPv6 address",
    ),
    ("[::1]5/x", "\"[::1]5\" is not the name of a registry: only a port may follow the brackets"),
];

#[test]
fn what_is_wrong_is_said() {
    let long = "a/".repeat(128) + "b";
    let bare = format!("{HEX} is a digest without an image: NAME@sha256:{HEX}");
    let too_long = "the name of an image has at most 255 characters, this one has 267";
    for (text, want) in WRONG.iter().chain(&[(&*long, too_long), (HEX, &*bare)]) {
        match Reference::parse(text) {
            Ok(reference) => panic!("{text:?} was taken as {reference}"),
            Err(error) => assert_eq!(error.to_string(), *want, "{text:?}"),
        }
    }
    assert!(Reference::parse(&format!("x:{}", "t".repeat(128))).is_ok());
    assert!(Reference::parse(&format!("x:{}", "t".repeat(129))).is_err());
    // Found by fuzzing: what was added to make the name whole made it too long to be read again.
    let room = 255 - "docker.io/library/".len();
    let longest = Reference::parse(&"n".repeat(room)).expect("it fits");
    assert_eq!(Reference::parse(&longest.canonical()), Ok(longest));
    assert!(Reference::parse(&"n".repeat(room + 1)).is_err());
}

fn references() -> impl Strategy<Value = String> {
    let host = "(|docker\\.io/|localhost/|[a-z]{1,3}\\.[A-Z0-9]{1,3}/|h:[1-9][0-9]{0,3}/|\\[::[1-9a-f]\\](:5000)?/)";
    let part = "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}";
    // With a dot the first part could be a host.
    let first = "[a-z0-9]{1,4}((_|__|-{1,3})[a-z0-9]{1,3}){0,2}";
    let repository = format!("{first}(/{part}){{0,2}}");
    let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,8})?";
    let digest = "(@sha256:[0-9a-f]{64})?";
    let repository = string_regex(&repository).expect("an expression");
    (host, repository, tag, digest).prop_map(|(h, r, t, d)| format!("{h}{r}{t}{d}"))
}

proptest! {
    #[test]
    fn every_form_means_the_same(text in references()) {
        let reference = Reference::parse(&text);
        prop_assert!(reference.is_ok(), "{text}: {reference:?}");
        let reference = reference.expect("checked");
        prop_assert_eq!(Reference::parse(&reference.canonical()), Ok(reference.clone()));
        prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference.clone()));
        prop_assert_eq!(reference.to_string().parse(), Ok(reference));
    }

    #[test]
    fn what_is_taken_is_whole_and_safe(text in "[a-zA-Z0-9:/@.\\[\\]_-]{0,24}|.{0,12}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.canonical()), Ok(reference.clone()));
            prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference.clone()));
            prop_assert!(!reference.repository().split('/').any(|part| part.starts_with('.')));
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
        }
    }
}
