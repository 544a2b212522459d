//! Cutting a stream of bytes into lines of bounded length.

use std::collections::VecDeque;

/// Longest line that is passed on, in bytes; the rest of a longer one is dropped.
pub(super) const MAX_LINE: usize = 4096;

/// Collects bytes and gives out whole lines. A carriage return ends a line too, as progress
/// displays use it.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Take more bytes and show each line that they complete. Empty lines are not shown.
    pub(super) fn push(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.finish(on_line);
            } else if self.partial.len() < MAX_LINE {
                self.partial.push(byte);
            }
        }
    }

    /// Show what is left as a line.
    pub(super) fn finish(&mut self, on_line: &mut dyn FnMut(&str)) {
        if !self.partial.is_empty() {
            on_line(&String::from_utf8_lossy(&self.partial));
            self.partial.clear();
        }
    }
}

/// The last lines of a stream.
#[derive(Debug)]
pub(super) struct Tail {
    lines: VecDeque<String>,
    limit: usize,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self { lines: VecDeque::new(), limit }
    }

    pub(super) fn push(&mut self, line: &str) {
        if self.lines.len() == self.limit {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, &mut |line| lines.push(line.to_owned()));
        }
        splitter.finish(&mut |line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let want = ["one", "two", "three"];
        assert_eq!(split(&[b"one\ntwo\r\nthree"]), want);
        assert_eq!(split(&[b"o", b"ne\nt", b"wo\r", b"\nthree", b""]), want);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let long = vec![b'x'; MAX_LINE * 3];
        let lines = split(&[&long, b"\nnext"]);
        assert_eq!(lines[0].len(), MAX_LINE);
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(split(&[b"a\xffb"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::new(2);
        for line in ["a", "b", "c"] {
            tail.push(line);
        }
        assert_eq!(tail.into_lines(), ["b", "c"]);
    }
}
