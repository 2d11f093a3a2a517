//! An error that also says how the tool ends. Any other error is a bug of ours.

use std::fmt;

use vmexit::status::Status;

/// A sentence for the reader and the exit code that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the tool ends.
    pub status: Status,
    /// What is wrong and what to do about it.
    pub sentence: String,
}

impl Failure {
    /// The input is bad, or this host cannot do it.
    pub fn bad_input(sentence: impl Into<String>) -> Self {
        Self { status: Status::BadInput, sentence: sentence.into() }
    }

    /// Something took longer than it may.
    pub fn deadline(sentence: impl Into<String>) -> Self {
        Self { status: Status::Deadline, sentence: sentence.into() }
    }

    /// The reader pressed Ctrl-C.
    pub fn interrupted() -> Self {
        Self { status: Status::Interrupted, sentence: "stopped".to_owned() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}
