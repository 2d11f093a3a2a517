//! What every program in Rust needs: its first instruction, the system calls, and
//! `println!`.

#[allow(dead_code)] // the kernel needs the rest
#[path = "../../../../src/abi.rs"]
mod abi;

// What the Linux target leaves to a libc.
#[path = "../../kernel/src/runtime.rs"]
mod runtime;

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};

// RSP is a multiple of 16 here, and a call pushes what a function expects.
global_asm!(".globl _start", "_start:", "call {start}", start = sym start);

unsafe extern "Rust" {
    /// The program's own, with `#[unsafe(no_mangle)]`; its result is the exit code.
    safe fn main() -> u8;
}

extern "C" fn start() -> ! {
    exit(main())
}

// ANCHOR: call
fn call(number: u64, first: u64, second: u64, third: u64) -> i64 {
    let result;
    // SAFETY: the kernel changes RAX, RCX and R11, and memory in no call that there is.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third,
            out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    result
}
// ANCHOR_END: call

/// How many system calls the kernel has served, this one included.
#[allow(dead_code)] // not every program asks
pub fn calls() -> i64 {
    call(abi::CALLS, 0, 0, 0)
}

/// Ends the program.
pub fn exit(code: u8) -> ! {
    call(abi::EXIT, code.into(), 0, 0);
    unreachable!("exit does not return")
}

/// The console. What is printed is gathered to a line, so that a line is one system call.
pub struct Console {
    line: [u8; 128],
    length: usize,
}

impl Console {
    pub const fn new() -> Self {
        Self { line: [0; 128], length: 0 }
    }

    pub fn flush(&mut self) {
        call(abi::WRITE, abi::CONSOLE, self.line.as_ptr() as u64, self.length as u64);
        self.length = 0;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length == self.line.len() {
                self.flush();
            }
            self.line[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        let mut console = crate::system::Console::new();
        let _ = writeln!(console, $($arguments)*);
        console.flush();
    }};
}

pub(crate) use println;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("the program panicked: {}", info.message());
    exit(101)
}
