//! Chapter 11's guest: a small 64-bit kernel. It is told what there is by the boot
//! information, makes its own page tables, and runs one program in ring 3.
//!
//! ```text
//! 0x0000000000400000  the program: its segments, as its ELF file says
//! 0x00007fffffffe000  the end of its stack
//! 0xffff800000000000  all memory once more, data only
//! 0xffffc00000000000  the heap
//! 0xffffffff80100000  the kernel: text R-X, rodata R--, data RW-, stack
//! ```
//!
//! The exit code that the hypervisor gets: the program's own, or one of [`exit`]'s.

#![no_std]
#![no_main]

extern crate alloc;

#[allow(dead_code)] // the hypervisor needs the rest
#[path = "../../../../src/boot/info.rs"]
mod info; // What the hypervisor says, in a file that it shares.
#[allow(dead_code)] // the programs need the rest
#[path = "../../../../src/abi.rs"]
mod abi; // What programs may ask for, in a file that they share.
mod cpu; // Instructions that Rust has no word for.
mod global; // One value for one CPU.
mod print; // The serial port.
mod panic; // What a panic says.
mod exit; // How the machine ends.
mod boot; // What the boot information says, copied to where it stays.
mod pvh; // The same from PVH's start information.
mod segments; // GDT and TSS.
mod exceptions; // IDT and handlers.
mod frames; // Which physical pages are free.
mod paging; // Page tables.
mod heap; // `alloc`.
mod program; // The program's ELF file and address space.
mod user; // Into ring 3 and back.
mod syscall; // What it can ask for there.
mod tests; // The kernel's own tests.
mod runtime; // What the Linux target leaves to a libc.

use boot::Boot;
use print::println;

core::arch::global_asm!(include_str!("entry.s"), sse = const cfg!(target_feature = "sse") as u32);

/// Called from `entry.s`, on the kernel's stack.
///
/// # Safety
/// `info` is what the boot protocol says.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot(info: u64) -> ! {
    segments::load();
    exceptions::load();
    // SAFETY: the caller passes on what it was given.
    main(unsafe { Boot::read(info) })
}

/// The same for PVH.
///
/// # Safety
/// `start_info` is what PVH says.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot_pvh(start_info: u64) -> ! {
    segments::load();
    exceptions::load();
    // SAFETY: the caller passes on what it was given.
    main(unsafe { pvh::read(start_info) })
}

// ANCHOR: main
fn main(boot: Boot) -> ! {
    boot.print();
    frames::init(&boot);
    paging::init(&boot);
    heap::init();
    syscall::init();
    println!("kernel: {}; {}", paging::describe(), cpu::protections());
    println!("kernel: command line {:?}", boot.command_line());

    if boot.has_word("test") {
        tests::run();
    }
    if boot.has_word("panic") {
        panic::on_purpose();
    }
    if boot.has_word("overflow") {
        panic::overflow_the_stack(0);
    }
    if boot.has_word("reboot") {
        println!("kernel: reboot");
        exit::reboot();
    }
    let Some(file) = boot.program() else {
        println!("kernel: no program to run");
        exit::exit(exit::NOTHING_TO_RUN)
    };
    match user::run(file) {
        Ok(code) => {
            println!("kernel: the program ended with code {code}");
            exit::exit(code as u32)
        }
        Err(reason) => {
            println!("kernel: {reason}");
            exit::exit(reason.code())
        }
    }
}
// ANCHOR_END: main
