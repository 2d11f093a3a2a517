//! What the two sides of a lab say to each other.
//!
//! ```text
//! host:  vmexit lab  --(initramfs: /lab/jobs.json)-->  PID 1, this package's program
//!        vmexit lab  <--(second serial port: frames)--
//!        vmexit lab  --(second serial port: keys, for a job that wants them)-->
//! ```
//!
//! The console is on the first serial port and is for people only: nothing is
//! ever read out of it. Results travel alone on the second port, each in a
//! [`frame`] with a number and a checksum, so that a damaged one is noticed.

pub mod frame;
pub mod job;

pub use frame::{Decoder, FrameError};
pub use job::{Ending, Job, Orders, Report, Stdin, Stream};
