//! What a proxy can be told to do wrong, and when.

use super::http::Request;

/// Something to do wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Close the connection after that many bytes of the answer's body.
    DropAfter(u64),
    /// Close the connection after that many bytes of the request's body.
    DropRequestAfter(u64),
    /// Answer that, without asking upstream.
    Answer {
        /// `429`.
        status: u16,
        /// Headers beside the length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// Change the byte at that place of the body.
    Corrupt(u64),
    /// Say that the body has only that many bytes, and send only those.
    Truncate(u64),
    /// Say that the body has that many bytes more, and send them.
    Extend(u64),
    /// Send that many bytes of the body, then nothing more, and keep the connection open.
    Stall(u64),
    /// Take the connection and never answer.
    Silence,
    /// Hide the header `Range` from upstream.
    IgnoreRange,
    /// Ask upstream for another path: the first text in it is replaced by the second.
    Rewrite(String, String),
    /// Set a header of the answer, or remove it.
    Header(String, Option<String>),
}

impl Fault {
    /// An answer without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// An answer without a body, with one header.
    #[must_use]
    pub fn status_with(status: u16, name: &str, value: &str) -> Self {
        let headers = vec![(name.to_owned(), value.to_owned())];
        Self::Answer { status, headers, body: Vec::new() }
    }

    /// An answer of success.
    #[must_use]
    pub fn body(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type".to_owned(), media_type.to_owned())];
        Self::Answer { status: 200, headers, body: body.into() }
    }
}

/// Which requests a fault happens to. The default is every time.
#[derive(Debug, Clone)]
pub struct When {
    method: Option<&'static str>,
    target: String,
    skip: usize,
    times: usize,
}

impl When {
    /// Any request whose path or query has `target` in it.
    #[must_use]
    pub fn any(target: &str) -> Self {
        Self { method: None, target: target.to_owned(), skip: 0, times: usize::MAX }
    }

    /// A `GET` of a path that has `target` in it.
    #[must_use]
    pub fn get(target: &str) -> Self {
        Self::method("GET", target)
    }

    /// A request with that method, of a path that has `target` in it.
    #[must_use]
    pub fn method(method: &'static str, target: &str) -> Self {
        Self { method: Some(method), ..Self::any(target) }
    }

    /// Only the first time.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Only that many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Not the first `skip` times.
    #[must_use]
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// Whether it is now; counts.
    pub(super) fn is_now(&mut self, request: &Request) -> bool {
        let fits = self.method.is_none_or(|method| method == request.method)
            && request.target.contains(&self.target);
        if !fits || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}
