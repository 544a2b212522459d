//! Finding the beginning of a connection in a stream that may hold the end of another one.

use banger_api::agent::{NONCE_LEN, PREAMBLE};

/// A preamble with its nonce, as the host sent it and gets it back.
pub const GREETING_LEN: usize = PREAMBLE.len() + NONCE_LEN;

/// Looks for a greeting in bytes that arrive in pieces.
#[derive(Debug, Default)]
pub struct Scanner {
    /// What may still become a greeting; never longer than one and what came with it.
    pending: Vec<u8>,
}

impl Scanner {
    /// Takes the next bytes and returns the last complete greeting among them.
    ///
    /// The last one counts, because a host that got no answer greets again. What follows it is
    /// dropped: a host says nothing before it has its answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<[u8; GREETING_LEN]> {
        self.pending.extend_from_slice(bytes);
        let mut found = None;
        let mut start = 0;
        while let Some(at) = find(&self.pending[start..]) {
            let begin = start + at;
            let Some(greeting) = self.pending[begin..].first_chunk::<GREETING_LEN>() else {
                start = begin;
                break;
            };
            found = Some(*greeting);
            start = begin + GREETING_LEN;
        }
        if found.is_some() {
            self.pending.clear();
        } else {
            let keep_from = start.max(self.pending.len().saturating_sub(GREETING_LEN - 1));
            // A preamble that has begun is kept whole; it is never longer than a greeting.
            let keep_from = if find(&self.pending[start..]) == Some(0) { start } else { keep_from };
            self.pending.drain(..keep_from);
        }
        found
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(PREAMBLE.len()).position(|window| window == PREAMBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(nonce: u8) -> [u8; GREETING_LEN] {
        let mut bytes = [nonce; GREETING_LEN];
        bytes[..PREAMBLE.len()].copy_from_slice(PREAMBLE);
        bytes
    }

    #[test]
    fn a_greeting_is_found_wherever_the_pieces_end() {
        let mut stream = b"\0\xffbanger-agent\x01left over\0\xff".to_vec();
        stream.extend_from_slice(&greeting(7));
        for cut in 0..stream.len() {
            let mut scanner = Scanner::default();
            let first = scanner.feed(&stream[..cut]);
            assert_eq!(first.or(scanner.feed(&stream[cut..])), Some(greeting(7)), "cut at {cut}");
        }
        let mut scanner = Scanner::default();
        let found: Vec<_> = stream.iter().filter_map(|byte| scanner.feed(&[*byte])).collect();
        assert_eq!(found, [greeting(7)]);
    }

    #[test]
    fn the_last_greeting_counts() {
        let both = [greeting(1), greeting(2)].concat();
        assert_eq!(Scanner::default().feed(&both), Some(greeting(2)));
    }

    #[test]
    fn garbage_is_not_kept() {
        let mut scanner = Scanner::default();
        for _ in 0..1000 {
            assert_eq!(scanner.feed(&[0xff; 1000]), None);
            assert!(scanner.pending.len() < GREETING_LEN);
        }
    }
}
