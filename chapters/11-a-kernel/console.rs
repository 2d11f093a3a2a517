//! The guest's console, a line at a time.

use vmexit::run::Run;

/// What a guest writes, until the line is whole.
pub struct Console<'a> {
    run: &'a Run,
    line: Vec<u8>,
}

/// A guest that never ends its line gets this far.
const LONGEST_LINE: usize = 4096;

impl<'a> Console<'a> {
    pub fn new(run: &'a Run) -> Self {
        Self { run, line: Vec::new() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.print();
            } else {
                self.line.push(*byte);
                if self.line.len() == LONGEST_LINE {
                    self.print();
                }
            }
        }
    }

    /// Prints what is left of a line without an end.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            self.print();
        }
    }

    fn print(&mut self) {
        // A guest must not reach the reader's terminal with control characters.
        let text =
            String::from_utf8_lossy(&self.line).replace(|c: char| c.is_control() && c != '\t', "\u{fffd}");
        self.run.say(text);
        self.line.clear();
    }
}

/// Also where the run ends from outside.
impl Drop for Console<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}
