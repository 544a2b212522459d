//! What the agent says on the guest's console: rarely anything, and only what a person needs who
//! wonders why a VM did not come up. Also the process-wide settings that keep the agent small.

use std::io::Write;
use std::time::Duration;

/// After how long a person is told what is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Writes one line to the console. A console that does not take it changes nothing.
pub fn say(text: &str) {
    let line = format!("banger-agent: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Waits for something, and says so if it does not come soon: why a VM that hangs does.
pub async fn awaiting<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    let mut awaited = std::pin::pin!(awaited);
    match tokio::time::timeout(PATIENCE, &mut awaited).await {
        Ok(came) => came,
        Err(_) => {
            say(&format!("{what} has not come for {} s; waiting on", PATIENCE.as_secs()));
            awaited.await
        }
    }
}

/// The same for an error, with everything that caused it.
pub fn say_error(what: &str, error: &dyn std::error::Error) {
    let mut text = what.to_owned();
    let mut next = Some(error);
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    say(&text);
}

/// Keeps the allocator from holding on to memory that a burst of output needed once.
pub fn bound_memory() {
    const TRIM_BYTES: libc::c_int = 256 * 1024;
    // SAFETY: `mallopt` only changes parameters of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, TRIM_BYTES);
    }
}
