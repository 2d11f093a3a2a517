//! Million guest instructions a second, in 64-bit code with paging:
//! `cargo run --release -p vmexit-soft --example mips`

use std::alloc::{Layout, alloc_zeroed};
use std::time::Instant;

use vmexit_soft::{Exit, Machine, Regs, Segment, Slot, Sregs};

const MEMORY: usize = 32 << 20;
const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const STACK: u64 = 0x9000;

/// A guest, and the instructions that it executes.
struct Guest {
    name: &'static str,
    code: &'static [u8],
}

/// DATA is 0x100000.
#[rustfmt::skip] // an instruction a line
const GUESTS: &[Guest] = &[
    Guest { name: "register loop", code: &[
        0xb9, 0x00, 0xe1, 0xf5, 0x05, // mov ecx, 100_000_000
        0xff, 0xc9,                   // dec ecx
        0x75, 0xfc,                   // jnz -4
        0xf4,                         // hlt
    ] },
    Guest { name: "sieve", code: &[
        0x41, 0xb9, 0x14, 0x00, 0x00, 0x00,       // mov r9d, 20
        // again: every number of a million is prime
        0xbf, 0x00, 0x00, 0x10, 0x00,             // mov edi, DATA
        0xb9, 0x40, 0x42, 0x0f, 0x00,             // mov ecx, 1_000_000
        0x30, 0xc0,                               // xor al, al
        0xf3, 0xaa,                               // rep stosb
        0xbb, 0x02, 0x00, 0x00, 0x00,             // mov ebx, 2
        // next:
        0x80, 0xbb, 0x00, 0x00, 0x10, 0x00, 0x00, // cmp byte ptr [rbx + DATA], 0
        0x75, 0x18,                               // jne skip
        0x89, 0xd8,                               // mov eax, ebx
        0x0f, 0xaf, 0xc3,                         // imul eax, ebx
        // strike:
        0x3d, 0x40, 0x42, 0x0f, 0x00,             // cmp eax, 1_000_000
        0x73, 0x0c,                               // jae skip
        0xc6, 0x80, 0x00, 0x00, 0x10, 0x00, 0x01, // mov byte ptr [rax + DATA], 1
        0x01, 0xd8,                               // add eax, ebx
        0xeb, 0xee,                               // jmp strike
        0x90,                                     // nop
        // skip:
        0xff, 0xc3,                               // inc ebx
        0x81, 0xfb, 0xe8, 0x03, 0x00, 0x00,       // cmp ebx, 1000
        0x75, 0xd5,                               // jne next
        0x41, 0xff, 0xc9,                         // dec r9d
        0x75, 0xbd,                               // jnz again
        0xf4,                                     // hlt
    ] },
    Guest { name: "copy by words", code: &[
        0x41, 0xb9, 0xc8, 0x00, 0x00, 0x00,       // mov r9d, 200
        0xbe, 0x00, 0x00, 0x10, 0x00,             // again: mov esi, DATA
        0xb9, 0x00, 0x00, 0x02, 0x00,             // mov ecx, 128 K
        0x48, 0x8b, 0x04, 0xce,                   // word: mov rax, [rsi + rcx * 8]
        0x48, 0x89, 0x84, 0xce, 0x00, 0x00, 0x80, 0x00, // mov [rsi + rcx * 8 + 8 M], rax
        0xff, 0xc9,                               // dec ecx
        0x75, 0xf0,                               // jnz word
        0x41, 0xff, 0xc9,                         // dec r9d
        0x75, 0xe1,                               // jnz again
        0xf4,                                     // hlt
    ] },
    Guest { name: "calls and returns", code: &[
        0xbf, 0x23, 0x00, 0x00, 0x00,             // mov edi, 35
        0xe8, 0x01, 0x00, 0x00, 0x00,             // call fibonacci
        0xf4,                                     // hlt
        0x83, 0xff, 0x02,                         // fibonacci: cmp edi, 2
        0x72, 0x16,                               // jb small
        0x57,                                     // push rdi
        0xff, 0xcf,                               // dec edi
        0xe8, 0xf3, 0xff, 0xff, 0xff,             // call fibonacci
        0x5f,                                     // pop rdi
        0x50,                                     // push rax
        0x83, 0xef, 0x02,                         // sub edi, 2
        0xe8, 0xe9, 0xff, 0xff, 0xff,             // call fibonacci
        0x59,                                     // pop rcx
        0x01, 0xc8,                               // add eax, ecx
        0xc3,                                     // ret
        0x89, 0xf8,                               // small: mov eax, edi
        0xc3,                                     // ret
    ] },
];

fn main() {
    let layout = Layout::from_size_align(MEMORY, 4096).expect("a size and a power of two");
    for guest in GUESTS {
        #[allow(unsafe_code)]
        // SAFETY: the layout's size is not 0; the memory is never given back.
        let host = unsafe { alloc_zeroed(layout) };
        assert!(!host.is_null(), "out of memory");
        write(host, CODE, guest.code);
        // One gigabyte, mapped to itself with pages of 2 MiB.
        write(host, TABLES, &(TABLES + 0x1000 + 7).to_le_bytes());
        write(host, TABLES + 0x1000, &(TABLES + 0x2000 + 7).to_le_bytes());
        for page in 0..512u64 {
            write(host, TABLES + 0x2000 + page * 8, &(page << 21 | 0x87).to_le_bytes());
        }

        let machine = Machine::new();
        let slot = Slot {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: host as u64,
            ..Slot::default()
        };
        #[allow(unsafe_code)]
        // SAFETY: the memory is never given back.
        unsafe { machine.set_slot(slot) }.expect("a good slot");
        let mut vcpu = machine.create_vcpu();
        let data = Segment { limit: u32::MAX, type_: 3, present: 1, db: 1, s: 1, g: 1, ..Segment::default() };
        let cs = Segment { selector: 8, type_: 11, l: 1, db: 0, ..data };
        let sregs = Sregs {
            cs,
            ds: data,
            es: data,
            ss: data,
            cr0: 0x8000_0011,
            cr3: TABLES,
            cr4: 0x20,
            efer: 0x500,
            ..Sregs::reset()
        };
        vcpu.set_sregs(&sregs).expect("long mode");
        vcpu.set_regs(&Regs { rip: CODE, rsp: STACK, ..Regs::reset() });
        let start = Instant::now();
        let exit = loop {
            match vcpu.run(false).expect("nobody interrupts it") {
                Exit::Budget => {}
                exit => break exit,
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(exit, Exit::Hlt, "{}: {:x?}", guest.name, vcpu.regs());
        let instructions = vcpu.instructions();
        println!(
            "{:<18} {:>5.0} MIPS  {instructions} instructions in {seconds:.2} s",
            guest.name,
            instructions as f64 / seconds / 1e6
        );
    }
}

fn write(host: *mut u8, address: u64, bytes: &[u8]) {
    assert!(address as usize + bytes.len() <= MEMORY);
    #[allow(unsafe_code)]
    // SAFETY: the range is inside the guest's memory.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), host.add(address as usize), bytes.len());
    }
}
