//! Reports as lines of text that survive a serial port, or are seen not to have.
//!
//! ```text
//! 3 1c291ca3 {"Started":{"job":0}}
//! | |        the report, as JSON
//! | CRC-32 of the JSON and the number
//! number of the frame, from 0
//! ```

use crate::Report;

/// One report as a frame, with its final newline.
///
/// # Panics
/// Never: a [`Report`] always has a JSON form.
#[must_use]
pub fn encode(number: u64, report: &Report) -> String {
    let json = serde_json::to_string(report).expect("a report has no map with odd keys");
    format!("{number} {:08x} {json}\n", checksum(number, &json))
}

fn checksum(number: u64, json: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(json.as_bytes());
    hasher.finalize()
}

/// Why the bytes that came are not the frame that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The line has no number, checksum and JSON, or they do not match.
    #[error("frame {expected} arrived damaged: {line:?}")]
    Damaged { expected: u64, line: String },
    /// A whole frame went missing.
    #[error("frame {expected} never arrived: the next one is {got}")]
    Missing { expected: u64, got: u64 },
}

/// Turns the bytes of the second serial port back into reports.
///
/// What precedes the first good frame is dropped: a serial port may say
/// anything while the kernel probes it.
#[derive(Debug, Default)]
pub struct Decoder {
    unfinished: Vec<u8>,
    expected: u64,
}

impl Decoder {
    /// Takes the next bytes; returns the reports that they complete.
    ///
    /// # Errors
    /// [`FrameError`] for the first frame that is damaged or missing. What
    /// follows such a frame cannot be trusted, so the bytes are dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Report>, FrameError> {
        self.unfinished.extend_from_slice(bytes);
        let Some(last_newline) = self.unfinished.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.unfinished.split_off(last_newline + 1);
        let complete = std::mem::replace(&mut self.unfinished, rest);
        let mut reports = Vec::new();
        for line in String::from_utf8_lossy(&complete).lines().filter(|line| !line.is_empty()) {
            match self.decode(line) {
                Ok(report) => reports.push(report),
                Err(FrameError::Damaged { expected: 0, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(reports)
    }

    fn decode(&mut self, line: &str) -> Result<Report, FrameError> {
        let expected = self.expected;
        let (number, report) =
            parse(line).ok_or_else(|| FrameError::Damaged { expected, line: line.to_owned() })?;
        if number != expected {
            return Err(FrameError::Missing { expected, got: number });
        }
        self.expected += 1;
        Ok(report)
    }
}

fn parse(line: &str) -> Option<(u64, Report)> {
    let (number, rest) = line.split_once(' ')?;
    let (sum, json) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    if u32::from_str_radix(sum, 16).ok()? != checksum(number, json) {
        return None;
    }
    Some((number, serde_json::from_str(json).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Bytes, Ending, Stream};

    fn session() -> Vec<Report> {
        vec![
            Report::Ready { kernel: "6.1.0".into() },
            Report::Started { job: 0 },
            Report::Output { job: 0, stream: Stream::Stdout, bytes: Bytes(vec![0, 10, 13, 255]) },
            Report::Finished { job: 0, ending: Ending::Code(3) },
            Report::Done,
        ]
    }

    fn on_the_wire() -> String {
        (0..).zip(session()).map(|(number, report)| encode(number, &report)).collect()
    }

    #[test]
    fn a_session_survives_whatever_pieces_it_arrives_in() {
        for piece in [1, 7, 64, 4096] {
            let mut decoder = Decoder::default();
            let reports: Vec<Report> = on_the_wire()
                .as_bytes()
                .chunks(piece)
                .flat_map(|bytes| decoder.push(bytes).expect("an undamaged frame"))
                .collect();
            assert_eq!(reports, session());
        }
    }

    #[test]
    fn noise_before_the_first_frame_is_dropped() {
        let mut decoder = Decoder::default();
        let reports = decoder.push(format!("\0\u{7f}noise\n{}", on_the_wire()).as_bytes());
        assert_eq!(reports, Ok(session()));
    }

    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is() {
        let wire = on_the_wire().into_bytes();
        let first = wire.iter().position(|&byte| byte == b'\n').expect("a newline") + 1;
        for at in first..wire.len() {
            let mut damaged = wire.clone();
            damaged[at] ^= 0x10;
            let mut decoder = Decoder::default();
            let result = decoder.push(&damaged).map(|reports| reports.len());
            assert!(result.is_err() || at == wire.len() - 1, "the flip at byte {at} went unseen");
        }
    }

    #[test]
    fn a_lost_frame_is_noticed() {
        let wire: Vec<String> = on_the_wire().lines().map(|line| format!("{line}\n")).collect();
        let without_the_third = [&wire[..2], &wire[3..]].concat().concat();
        assert_eq!(
            Decoder::default().push(without_the_third.as_bytes()),
            Err(FrameError::Missing { expected: 2, got: 3 })
        );
    }

    #[test]
    fn an_unfinished_line_is_no_report_yet() {
        let wire = on_the_wire();
        let reports = Decoder::default().push(&wire.as_bytes()[..wire.len() - 1]);
        assert_eq!(reports.map(|reports| reports.len()), Ok(session().len() - 1));
    }
}
