//! The serial port COM1, a byte an `out`. Chapter 12 asks the port whether it is
//! ready; here it always is.

use core::fmt::{self, Write};

use crate::cpu;

const COM1: u16 = 0x3f8;

pub struct Serial;

impl Serial {
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            cpu::out8(COM1, *byte);
        }
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// Prints a line.
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        // The serial port takes everything.
        let _ = writeln!(crate::print::Serial, $($arguments)*);
    }};
}

pub(crate) use println;
