//! What a step can be made to do in test builds, and how that is written.

use std::fmt;
use std::str::FromStr;

/// What a step can be made to do, in test builds only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The process ends, as by `kill -9`.
    Crash,
    /// The step fails with that error.
    Fail(Failing),
    /// The step never goes on.
    Stall,
    /// The step waits until it is released.
    Hold,
}

/// The errors that a step can be made to fail with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// The device does not do it.
    Eio,
    /// There is no room.
    Enospc,
    /// It took too long.
    Etimedout,
}

impl Failing {
    /// The number that Linux has for it.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Eio => 5,
            Self::Enospc => 28,
            Self::Etimedout => 110,
        }
    }
}

/// Why a text is no [`Effect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoEffect(String);

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of crash, fail EIO|ENOSPC|ETIMEDOUT, stall, hold", self.0)
    }
}

impl std::error::Error for NoEffect {}

impl FromStr for Effect {
    type Err = NoEffect;

    fn from_str(text: &str) -> Result<Self, NoEffect> {
        match text.trim() {
            "crash" => Ok(Self::Crash),
            "fail EIO" => Ok(Self::Fail(Failing::Eio)),
            "fail ENOSPC" => Ok(Self::Fail(Failing::Enospc)),
            "fail ETIMEDOUT" => Ok(Self::Fail(Failing::Etimedout)),
            "stall" => Ok(Self::Stall),
            "hold" => Ok(Self::Hold),
            other => Err(NoEffect(other.to_owned())),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Crash => "crash",
            Self::Fail(Failing::Eio) => "fail EIO",
            Self::Fail(Failing::Enospc) => "fail ENOSPC",
            Self::Fail(Failing::Etimedout) => "fail ETIMEDOUT",
            Self::Stall => "stall",
            Self::Hold => "hold",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_what_they_are_written_as() {
        for text in ["crash", "fail EIO", "fail ENOSPC", "fail ETIMEDOUT", "stall", "hold"] {
            assert_eq!(text.parse::<Effect>().expect("an effect").to_string(), text);
        }
        assert_eq!("crash\n".parse(), Ok(Effect::Crash));
        let wrong = "fail EPERM".parse::<Effect>().expect_err("not offered").to_string();
        assert!(wrong.contains("fail EPERM"), "{wrong}");
    }
}
