//! The orders that go into the machine and the reports that come out.

use std::io::Read;

use base64::prelude::{BASE64_STANDARD, Engine};
use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where PID 1 finds its [`Orders`] inside the initramfs.
pub const ORDERS_PATH: &str = "/lab/jobs.json";

/// Everything that PID 1 is asked to do in one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Kernel modules inside the initramfs, in the order they are to be loaded.
    pub modules: Vec<String>,
    /// Whether the CPU needs a non-maskable interrupt now and then: Bochs does.
    pub heartbeat: bool,
    /// The programs to run, one after the other.
    pub jobs: Vec<Job>,
}

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its path inside the initramfs.
    pub program: String,
    /// Its arguments, without the program's own name.
    pub arguments: Vec<String>,
    /// Its whole environment: names and values.
    pub environment: Vec<(String, String)>,
    /// Seconds after which it is killed, by the machine's clock.
    pub limit_seconds: u64,
    /// What it reads from its stdin.
    pub stdin: Stdin,
}

/// A program's stdin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// Nothing.
    #[default]
    Empty,
    /// These bytes, and then its end.
    Bytes(Bytes),
    /// A terminal, on which the reader types: what comes in on the second serial port.
    Keyboard,
}

/// What PID 1 tells the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The machine is up: the modules are loaded and KVM's device is there.
    Ready { kernel: String },
    /// Job number `job` runs now.
    Started { job: usize },
    /// Job number `job` wrote something.
    Output { job: usize, stream: Stream, bytes: Bytes },
    /// Job number `job` is over and all its output has been sent.
    Finished { job: usize, ending: Ending },
    /// All jobs are over.
    Done,
    /// The machine cannot go on, in a sentence.
    Failed { reason: String },
}

/// Which of its two streams a program wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It ran into [`Job::limit_seconds`] and was killed.
    TimedOut,
    /// It could not be started, in a sentence.
    NotStarted(String),
}

/// Bytes that need not be UTF-8. In JSON they are deflated and a base64 string:
/// a serial port carries 11 kB in a second of the machine's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut packed = Vec::new();
        DeflateEncoder::new(self.0.as_slice(), Compression::default())
            .read_to_end(&mut packed)
            .map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&BASE64_STANDARD.encode(packed))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let packed = BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let mut bytes = Vec::new();
        DeflateDecoder::new(packed.as_slice()).read_to_end(&mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}
