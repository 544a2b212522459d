//! Files that a client has sent and that wait to be used: nameless, so that whatever ends this
//! process ends them too.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_api::{ErrorCode, Problem};
use banger_host::random;

/// How long an upload waits to be used.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// How many may wait at a time.
const MOST: usize = 16;

/// Uploads by id.
#[derive(Debug, Default)]
pub struct Uploads {
    waiting: Mutex<BTreeMap<String, (Instant, Arc<File>)>>,
}

impl Uploads {
    /// Keeps a file until it is taken. Answers its id.
    ///
    /// # Errors
    /// If too many wait already.
    pub fn keep(&self, file: File, now: Instant) -> Result<String, Problem> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| now.duration_since(*since) < KEPT);
        if waiting.len() >= MOST {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                "too many uploads wait to be used",
            ));
        }
        let id = random::hex::<8>();
        waiting.insert(id.clone(), (now, Arc::new(file)));
        Ok(id)
    }

    /// Takes a file.
    ///
    /// # Errors
    /// If there is none of that id, or no longer.
    pub fn take(&self, id: &str) -> Result<Arc<File>, Problem> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(id).map(|(_, file)| file).ok_or_else(|| {
            Problem::new(ErrorCode::InvalidArgument, format!("there is no upload {id:?}"))
        })
    }
}

/// The path under which this process can open a nameless file.
#[must_use]
pub fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        tempfile::tempfile().expect("a file")
    }

    #[test]
    fn an_upload_is_taken_once() {
        let uploads = Uploads::default();
        let id = uploads.keep(file(), Instant::now()).expect("room");
        let taken = uploads.take(&id).expect("it is there");
        assert!(std::fs::metadata(path_of(&taken)).expect("it can be opened").is_file());
        assert_eq!(uploads.take(&id).expect_err("taken").code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn those_that_wait_too_long_make_room() {
        let uploads = Uploads::default();
        let begin = Instant::now();
        for _ in 0..MOST {
            uploads.keep(file(), begin).expect("room");
        }
        uploads.keep(file(), begin).expect_err("no room");
        uploads.keep(file(), begin + KEPT).expect("room again");
    }
}
