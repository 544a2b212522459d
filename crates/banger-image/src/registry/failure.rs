//! What the answers of a registry mean.

use std::time::Duration;

use banger_host::clock;
use http::StatusCode;
use http::header::RETRY_AFTER;
use serde::Deserialize;

use super::error::{RegistryError, printable};
use super::retry::parse_retry_after;
use super::transport::Answer;

/// Why a request did not lead to an answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work the next time; the registry may have said when.
    Again(RegistryError, Option<Duration>),
    /// It will not.
    Final(RegistryError),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Final(error)
    }
}

/// Whether a status means that the same request may work later.
pub(super) fn is_worth_another_try(status: StatusCode) -> bool {
    match status.as_u16() {
        // 501 and 505: it never will.
        501 | 505 => false,
        408 | 425 | 429 => true,
        code => code >= 500,
    }
}

/// How long a registry wants us to wait.
pub(super) fn retry_after(answer: &Answer) -> Option<Duration> {
    parse_retry_after(answer.header(RETRY_AFTER)?, clock::since_epoch())
}

#[derive(Deserialize)]
struct Complaint {
    errors: Option<Vec<Item>>,
    details: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    code: Option<String>,
    message: Option<String>,
}

/// The words of an error body, for people; None if there are none that make sense.
pub(super) fn words_of(body: &[u8]) -> Option<String> {
    let complaint: Complaint = serde_json::from_slice(body).ok()?;
    let item = complaint.errors.unwrap_or_default().into_iter().next();
    let words = match item {
        Some(Item { message: Some(message), .. }) if !message.is_empty() => Some(message),
        Some(Item { code, .. }) => code,
        None => complaint.details.or(complaint.error_description),
    };
    words.map(|words| printable(&words)).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_failures_pass() {
        let again = |code| is_worth_another_try(StatusCode::from_u16(code).expect("a status"));
        assert!([408, 429, 500, 502, 503, 504].into_iter().all(again));
        assert!(![200, 301, 400, 401, 403, 404, 405, 416, 501].into_iter().any(again));
    }

    #[test]
    fn complaints_are_read() {
        let cases = [
            (
                r#"{"errors":[{"code":"DENIED","message":"access\nforbidden","detail":{}}]}"#,
                Some("access forbidden"),
            ),
            (r#"{"errors":[{"code":"DENIED","message":""}]}"#, Some("DENIED")),
            (
                r#"{"details":"incorrect username or password"}"#,
                Some("incorrect username or password"),
            ),
            (r#"{"errors":[]}"#, None),
            (r#"{"errors":null}"#, None),
            ("<html>", None),
            ("", None),
        ];
        for (body, want) in cases {
            assert_eq!(words_of(body.as_bytes()).as_deref(), want, "{body}");
        }
    }
}
