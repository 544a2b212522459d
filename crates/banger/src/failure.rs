//! How a command fails: with something to say, or with an exit code that says it all.

use std::error::Error;

use banger_api::{ErrorCode, Problem, exit};
use banger_host::http::HttpError;
use banger_host::paths::{PathsError, ProgramsError};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Something to be told.
    Problem(Box<Problem>),
    /// The user knows already, or wanted it: an interrupt, a closed pipe, errors that were shown.
    Quiet(u8),
}

impl Failure {
    /// A failure with a code and a text.
    pub fn new(code: ErrorCode, title: impl Into<String>) -> Self {
        Problem::new(code, title).into()
    }

    /// Something that the surroundings of this process refused.
    pub fn internal(title: impl Into<String>, error: &dyn Error) -> Self {
        Problem::new(ErrorCode::Internal, title).because(error).into()
    }

    /// The end that a signal to this process asked for.
    pub fn signal(number: i32) -> Self {
        Self::Quiet(exit::for_signal(number))
    }

    /// The same failure with a hint, if it has none yet.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Problem(problem) = &mut self {
            problem.hint.get_or_insert_with(|| hint.into());
        }
        self
    }

    /// The same failure with another hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Problem(problem) = &mut self {
            problem.hint = Some(hint.into());
        }
        self
    }

    /// The stable code, if there is something to tell.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            Self::Quiet(_) => None,
        }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Quiet(code) => *code,
            Self::Problem(problem) => match problem.code {
                ErrorCode::ExecNotFound => exit::NOT_FOUND,
                ErrorCode::ExecNotExecutable => exit::NOT_EXECUTABLE,
                _ => exit::BANGER_FAILED,
            },
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Problem(problem) => problem.into(),
            other => Problem::new(ErrorCode::DaemonUnavailable, "the daemon did not answer")
                .because(&other)
                .hint("banger daemon logs")
                .into(),
        }
    }
}

impl From<PathsError> for Failure {
    fn from(error: PathsError) -> Self {
        Problem::new(ErrorCode::HostNotPermitted, "banger's state directories cannot be used")
            .because(&error)
            .hint("set BANGER_DATA_DIR and BANGER_RUNTIME_DIR to directories that you may write")
            .into()
    }
}

impl From<ProgramsError> for Failure {
    fn from(error: ProgramsError) -> Self {
        Problem::new(ErrorCode::HostProgramMissing, "banger is not installed completely")
            .because(&error)
            .hint("script/quickstart, or set BANGER_LIBEXEC_DIR and BANGER_LIB_DIR")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_stable_codes() {
        let cases = [
            (Failure::new(ErrorCode::ExecNotFound, "x"), 127),
            (Failure::new(ErrorCode::ExecNotExecutable, "x"), 126),
            (Failure::new(ErrorCode::ExecFailed, "x"), 125),
            (Failure::new(ErrorCode::VmNotFound, "x"), 125),
            (Failure::signal(2), 130),
            (Failure::signal(15), 143),
            (Failure::Quiet(3), 3),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
        }
    }

    #[test]
    fn a_hint_that_is_there_stays() {
        let hinted = |failure: Failure| match failure {
            Failure::Problem(problem) => problem.hint,
            Failure::Quiet(_) => None,
        };
        let bare = Failure::new(ErrorCode::Internal, "x").or_hint("ours");
        assert_eq!(hinted(bare).as_deref(), Some("ours"));
        let full: Failure = Problem::new(ErrorCode::Internal, "x").hint("theirs").into();
        assert_eq!(hinted(full.or_hint("ours")).as_deref(), Some("theirs"));
    }
}
