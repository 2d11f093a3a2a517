//! What a panic says: the message on the serial port, and the way there by the
//! hypervisor, which reads the chain of frames from outside and knows the names.

use core::panic::PanicInfo;

use crate::cpu;
use crate::exit;
use crate::info::BACKTRACE_PORT;
use crate::print::println;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("kernel panic: {}", info.message());
    if let Some(place) = info.location() {
        println!("  in {}:{}", place.file(), place.line());
    }
    cpu::out8(BACKTRACE_PORT, 0);
    exit::exit(exit::PANIC)
}

/// The command line's word `panic`: a few calls deep.
#[inline(never)]
pub fn on_purpose() -> ! {
    deeper(core::hint::black_box(&[1, 2, 3]))
}

#[inline(never)]
fn deeper(numbers: &[u32]) -> ! {
    let number = numbers[core::hint::black_box(3)];
    println!("there is no number {number} here");
    exit::exit(0)
}

/// The command line's word `overflow`: deeper than any stack.
#[inline(never)]
pub fn overflow_the_stack(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    overflow_the_stack(core::hint::black_box(depth + 1)) + depth
}
