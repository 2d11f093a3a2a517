//! The kernel's own tests, run inside the guest by the command line's word `test`.
//! Each returns whether what its name says is so.

use core::arch::global_asm;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use crate::exceptions::{self, Fault, error};
use crate::exit;
use crate::frames::{self, PAGE};
use crate::heap;
use crate::paging::{Tables, direct, entry};
use crate::print::println;
use crate::syscall;

global_asm!(include_str!("tests.s"));

unsafe extern "C" {
    fn try_read(address: u64);
    fn try_write(address: u64);
    fn try_call(address: u64);
    static code_in_data: u8;
}

// ANCHOR: table
type Test = (&'static str, fn() -> bool);

const TESTS: &[Test] = &[
    ("a page that is allocated is no longer free, and comes back", pages_come_back),
    ("a page that is mapped is the same memory as in the direct map", a_mapping_leads_to_its_page),
    ("a page that is taken out faults", an_unmapped_page_faults),
    ("page 0 is not mapped", page_0_faults),
    ("text cannot be written", text_cannot_be_written),
    ("rodata cannot be written", rodata_cannot_be_written),
    ("text cannot be written through the direct map", no_way_around),
    ("data cannot be executed", data_cannot_be_executed),
    ("the heap gives, grows and takes back", the_heap_works),
    ("a program's pointer into the kernel is refused", kernel_pointers_are_refused),
    ("an address space gives all its pages back", address_spaces_do_not_leak),
];
// ANCHOR_END: table

/// Runs all tests, and ends the machine.
pub fn run() -> ! {
    let mut failed = 0;
    for (name, test) in TESTS {
        let passed = test();
        failed += u32::from(!passed);
        println!("test: {} {name}", if passed { "ok    " } else { "FAILED" });
    }
    println!("test: {} passed, {failed} failed", TESTS.len() as u32 - failed);
    exit::exit(if failed == 0 { 0 } else { exit::TESTS_FAILED })
}

const SOMEWHERE: u64 = 0xffff_d000_0000_0000;

/// The fault that an access ends in.
fn fault_of(access: unsafe extern "C" fn(u64), address: u64) -> Option<Fault> {
    // SAFETY: the access reads a byte, writes back what was there, or calls a `ret`; where it
    // faults, the handler leads to the function's end.
    unsafe { access(address) };
    exceptions::caught()
}

/// Whether it is a page fault at that address with these bits of the error code.
fn is_page_fault(fault: Option<Fault>, address: u64, bits: u64) -> bool {
    fault.is_some_and(|fault| fault.vector == 14 && fault.address == address && fault.error == bits)
}

fn pages_come_back() -> bool {
    let before = frames::free_count();
    let (Some(one), Some(other)) = (frames::allocate(), frames::allocate()) else { return false };
    let taken = before - frames::free_count();
    frames::free(one);
    frames::free(other);
    one != other && one.is_multiple_of(PAGE) && taken == 2 && frames::free_count() == before
}

/// Calls `check` with a page that is mapped at [`SOMEWHERE`].
fn with_page(check: impl FnOnce(u64) -> bool) -> bool {
    let mut tables = Tables::kernel();
    let Some(frame) = frames::allocate() else { return false };
    if tables.map(SOMEWHERE, frame, PAGE, entry::WRITABLE | entry::NX).is_err() {
        return false;
    }
    let good = check(frame);
    tables.unmap(SOMEWHERE);
    frames::free(frame);
    good
}

fn a_mapping_leads_to_its_page() -> bool {
    with_page(|frame| {
        // SAFETY: the page is mapped twice, writable, and nobody else's.
        unsafe {
            (SOMEWHERE as *mut u64).write_volatile(0x0123_4567_89ab_cdef);
            direct(frame).cast::<u64>().read_volatile() == 0x0123_4567_89ab_cdef
        }
    })
}

fn an_unmapped_page_faults() -> bool {
    let mapped = with_page(|_| fault_of(try_write, SOMEWHERE).is_none());
    mapped && is_page_fault(fault_of(try_read, SOMEWHERE), SOMEWHERE, 0)
}

fn page_0_faults() -> bool {
    is_page_fault(fault_of(try_read, 8), 8, 0)
}

fn text_cannot_be_written() -> bool {
    let text = run as *const () as u64;
    is_page_fault(fault_of(try_write, text), text, error::PRESENT | error::WRITE)
}

fn rodata_cannot_be_written() -> bool {
    let constant = TESTS.as_ptr() as u64;
    is_page_fault(fault_of(try_write, constant), constant, error::PRESENT | error::WRITE)
}

fn no_way_around() -> bool {
    let text = direct(run as *const () as u64 - crate::info::KERNEL_BASE) as u64;
    is_page_fault(fault_of(try_write, text), text, error::PRESENT | error::WRITE)
}

fn data_cannot_be_executed() -> bool {
    let code = &raw const code_in_data as u64;
    is_page_fault(fault_of(try_call, code), code, error::PRESENT | error::FETCH)
}

fn the_heap_works() -> bool {
    let before = heap::used();
    let boxed = Box::new(41u64);
    let many: Vec<u64> = (0..1000).collect();
    let text = format!("{} {}", *boxed + 1, many.iter().sum::<u64>());
    let grown = heap::used() >= before + 8008;
    drop((boxed, many));
    let good = text == "42 499500" && grown;
    drop(text);
    good && heap::used() == before
}

fn kernel_pointers_are_refused() -> bool {
    let kernel = run as *const () as u64;
    let refused = [(kernel, 1), (u64::MAX, 2), (0, 1), ((1 << 47) - 1, 2)];
    refused.iter().all(|(address, length)| syscall::readable(*address, *length).is_none())
}

fn address_spaces_do_not_leak() -> bool {
    let before = frames::free_count();
    let Ok(mut tables) = Tables::for_program() else { return false };
    for page in [0x40_0000, 0x40_1000, 0x7fff_ffff_0000] {
        let Some(frame) = frames::allocate() else { return false };
        if tables.map(page, frame, PAGE, entry::USER).is_err() {
            return false;
        }
    }
    let taken = before - frames::free_count();
    drop(tables);
    // The PML4, two tables of each of the three lower levels, three pages.
    taken == 10 && frames::free_count() == before
}
