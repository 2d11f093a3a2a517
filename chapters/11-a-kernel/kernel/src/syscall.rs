//! System calls: those of chapter 10, by the ABI that its kernel serves, too.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi;
use crate::cpu::{self, efer};
use crate::frames::PAGE;
use crate::paging::{Tables, entry};
use crate::print::Serial;
use crate::segments::{KERNEL_CODE, USER_BASE};
use crate::user::{self, Reason};

/// Intel SDM Vol. 4, "Architectural MSRs".
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// RFLAGS bits that `syscall` clears: TF, IF, DF, NT, AC.
const CLEARED: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 18;

unsafe extern "C" {
    static syscall_entry: u8;
    static mut per_cpu: [u64; 2];
}

static CALLS_SERVED: AtomicU64 = AtomicU64::new(0);

/// Lets ring 3 call.
pub fn init() {
    // SAFETY: `syscall_entry` saves what it must, and the selectors are those of the GDT.
    unsafe {
        cpu::write_msr(efer::NUMBER, cpu::read_msr(efer::NUMBER) | efer::SCE);
        cpu::write_msr(STAR, u64::from(USER_BASE) << 48 | u64::from(KERNEL_CODE) << 32);
        cpu::write_msr(LSTAR, &raw const syscall_entry as u64);
        cpu::write_msr(FMASK, CLEARED);
        cpu::write_msr(KERNEL_GS_BASE, &raw const per_cpu as u64);
    }
}

// ANCHOR: dispatch
/// Called from `user.s`.
#[unsafe(no_mangle)]
extern "C" fn system_call(number: u64, first: u64, second: u64, third: u64) -> i64 {
    let served = CALLS_SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    match number {
        abi::WRITE => write(first, second, third),
        abi::EXIT => user::exit(first),
        abi::CALLS => served as i64,
        _ => -abi::ENOSYS,
    }
}
// ANCHOR_END: dispatch

fn write(file: u64, address: u64, length: u64) -> i64 {
    if file != abi::CONSOLE {
        return -abi::EBADF;
    }
    let Some(range) = readable(address, length) else {
        user::kill(Reason::BadPointer { address, length });
    };
    // SAFETY: ring 3 can read the range, and nothing else runs that could unmap it.
    let bytes = unsafe { core::slice::from_raw_parts(range.start as *const u8, length as usize) };
    Serial.write(bytes);
    length as i64
}

// ANCHOR: readable
/// The range, if the program itself could read all of it: a kernel that took the
/// program's word for it would print its own memory.
pub fn readable(address: u64, length: u64) -> Option<Range<u64>> {
    const USER_HALF: u64 = 1 << 47;
    let end = address.checked_add(length).filter(|end| *end <= USER_HALF)?;
    let tables = core::mem::ManuallyDrop::new(Tables { pml4: cpu::read_cr3() });
    for page in (address / PAGE * PAGE..end).step_by(PAGE as usize) {
        tables.walk(page).filter(|found| found & entry::USER != 0)?;
    }
    Some(address..end)
}
// ANCHOR_END: readable
