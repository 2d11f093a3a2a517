//! A bzImage of a few bytes, and everything that can be wrong with one.

use std::io::Cursor;

use super::header::{self, offset};
use super::zero_page::SIZE;
use super::*;

const MIB: u64 = 1 << 20;
/// The kernel proper of the test's image: recognisable, and not whole paragraphs of 16 bytes.
const CODE: &[u8] = &[0x90; 1000];

/// An image that a loader must accept: protocol 2.15, as Linux 6.1 has it.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 5 * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset::SETUP_SECTS, &[4]);
    put(offset::SYSSIZE, &(CODE.len() as u32 / 16).to_le_bytes());
    put(offset::BOOT_FLAG, &header::BOOT_FLAG.to_le_bytes());
    put(offset::JUMP, &[0xeb, 0x6a]);
    put(offset::HEADER, b"HdrS");
    put(offset::VERSION, &0x20fu16.to_le_bytes());
    put(offset::LOADFLAGS, &[header::LOADED_HIGH]);
    put(offset::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(offset::RELOCATABLE, &[1]);
    put(offset::XLOADFLAGS, &header::KERNEL_64.to_le_bytes());
    put(offset::CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(offset::PREF_ADDRESS, &(16 * MIB).to_le_bytes());
    put(offset::INIT_SIZE, &(4 * MIB as u32).to_le_bytes());
    file.extend(CODE);
    file
}

fn read(file: &[u8]) -> Result<String, String> {
    let mut file = Cursor::new(file);
    Kernel::read(&mut file).map(|kernel| kernel.describe()).map_err(|error| error.to_string())
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn load(memory: &Memory, file: &[u8], initrd: Option<&[u8]>, command_line: &str) -> Result<Start, String> {
    let (mut file, mut initrd) = (Cursor::new(file), initrd.map(Cursor::new));
    let boot = Boot {
        kernel: Kernel::read(&mut file).expect("a kernel"),
        initrd: initrd.as_mut().map(|file| file as _),
        command_line,
        acpi: 0xe_0000,
    };
    boot.load(memory).map_err(|error| error.to_string())
}

#[test]
fn a_kernel_and_its_initramfs_arrive_where_the_protocol_wants_them() {
    let memory = Memory::new(32 << 20).expect("32 MiB");
    let start = load(&memory, &bzimage(), Some(b"0707"), "console=ttyS0").expect("it fits");
    assert_eq!((start.rip, start.rsi), (0x10_0200, ZERO_PAGE));
    assert_eq!(start.initrd, (32 * MIB - 4096, 4));
    assert_eq!(memory.read(32 * MIB - 4096, 5).expect("inside"), b"0707\0");
    // The part of the last paragraph that the header does not count is left out.
    assert_eq!(memory.read(LOAD_ADDRESS, 993).expect("inside"), [&CODE[..992], &[0]].concat());
    assert_eq!(memory.read(COMMAND_LINE, 14).expect("inside"), b"console=ttyS0\0");
}

#[test]
fn what_is_no_kernel_is_said_in_one_sentence() {
    for (file, expected) in [
        (vec![], "no Linux kernel"),
        (b"hello".repeat(300), "no Linux kernel"),
        (b"\x1f\x8b".repeat(600), "compressed by gzip"),
        (b"070701".repeat(300), "cpio archive"),
        (bzimage()[..0x206].to_vec(), "cut off"),
        (bzimage()[..5 * 512 + 500].to_vec(), "its header promises 3552 bytes and the file has 3060"),
        (bzimage()[..5 * 512].to_vec(), "cut off"),
        (with(offset::VERSION, &[0x0b, 2]), "protocol 2.11"),
        (with(offset::VERSION, &[0, 0]), "protocol 0.00"),
        (with(offset::LOADFLAGS, &[0]), "zImage"),
        (with(offset::XLOADFLAGS, &[0, 0]), "32-bit CPUs"),
        (with(offset::JUMP, &[0xeb, 0x10]), "cut off"),
        (b"\x7fELF".repeat(300), "no ELF image that can be read"),
    ] {
        let error = read(&file).expect_err(expected);
        assert!(error.contains(expected) && !error.contains('\n'), "{expected}: {error}");
    }
    assert_eq!(read(&bzimage()).as_deref(), Ok("a bzImage, boot protocol 2.15"));
}

#[test]
fn what_does_not_fit_is_said_with_the_sizes() {
    let small = Memory::new(16 << 20).expect("16 MiB");
    let error = load(&small, &bzimage(), None, "").expect_err("it unpacks itself to 20 MiB");
    assert!(error.contains("needs 20 MiB") && error.contains("has 16"), "{error}");
    let exact = Memory::new(20 << 20).expect("20 MiB");
    assert!(load(&exact, &bzimage(), None, "").is_ok());
    let error = load(&exact, &bzimage(), Some(b"x"), "").expect_err("no room is left");
    assert!(error.contains("initramfs of 1 bytes") && error.contains("--memory"), "{error}");
    let error = load(&exact, &bzimage(), None, &"x".repeat(2048)).expect_err("one too many");
    assert!(error.contains("2048 bytes") && error.contains("2047"), "{error}");
    assert!(load(&exact, &bzimage(), None, &"x".repeat(2047)).is_ok());
    assert!(load(&exact, &bzimage(), None, "a\0b").is_err());
    let error = load(&exact, &with(offset::INIT_SIZE, &[0xff; 4]), None, "").expect_err("4 GiB");
    assert!(error.contains("needs 4112 MiB"), "{error}");
}

/// A pseudo-random number; the same ones in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn thousands_of_damaged_images_are_refused_or_loaded_and_nothing_panics() {
    let elf = std::fs::read(concat!(env!("OUT_DIR"), "/ch05.elf")).expect("built by build.rs");
    let memory = Memory::new(20 << 20).expect("20 MiB");
    let mut state = 7;
    let (mut loaded, mut refused) = (0, 0);
    for number in 0..6000 {
        let mut file = if number % 3 == 2 { elf.clone() } else { bzimage() };
        // Most damage goes where it is read: the header.
        let (from, to) = if number % 3 == 2 { (0, 0x100) } else { (0x1f0, 0x270) };
        for _ in 0..=random(&mut state) % 4 {
            let at = from + random(&mut state) as usize % (to - from);
            file[at] =
                [0x00, 0x01, 0x7f, 0x80, 0xff, random(&mut state) as u8][random(&mut state) as usize % 6];
        }
        if random(&mut state).is_multiple_of(4) {
            file.truncate(random(&mut state) as usize % file.len());
        }
        let mut file = Cursor::new(file);
        let Ok(kernel) = Kernel::read(&mut file) else {
            refused += 1;
            continue;
        };
        let mut initrd = Cursor::new([0; 5000]);
        let boot = Boot { kernel, initrd: Some(&mut initrd), command_line: "quiet", acpi: 0xe_0000 };
        match boot.load(&memory) {
            Ok(_) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    // Both happen often, or this test proves little.
    assert!(loaded > 500 && refused > 500, "{loaded} loaded, {refused} refused");
}

#[test]
fn the_state_at_the_entry_passes_the_checks_of_vm_entry() {
    let memory = Memory::new(1 << 20).expect("1 MiB");
    let mut sregs = kvm_sregs { cr0: mode::cr0::ET, ..kvm_sregs::default() };
    enter_kernel(&memory, &mut sregs).expect("it fits");
    let regs = crate::kvm::kvm_regs { rflags: mode::rflags::FIXED, ..crate::kvm::kvm_regs::default() };
    assert_eq!(crate::explain::entry_findings(&regs, &sregs), []);
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
    // `arch/x86/boot/pm.c`: what the kernel's own setup code puts there, and L for D in the code.
    let gdt = memory.read(GDT + 0x10, 16).expect("inside");
    assert_eq!(gdt[..8], 0x00af_9b00_0000_ffffu64.to_le_bytes());
    assert_eq!(gdt[8..], 0x00cf_9300_0000_ffffu64.to_le_bytes());
}

/// rust-vmm's linux-loader has these structs from the kernel's own headers.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_zero_page_is_laid_out_as_the_kernels_headers_have_it() {
    use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};

    let memory = Memory::new(32 << 20).expect("32 MiB");
    load(&memory, &bzimage(), Some(&[7; 5000]), "quiet").expect("it fits");
    let page = memory.read(ZERO_PAGE, SIZE).expect("inside");
    assert_eq!(page.len(), size_of::<boot_params>());
    // SAFETY: the struct is plain integers and arrays of them, valid for any bytes, and packed.
    let params: boot_params = unsafe { std::ptr::read_unaligned(page.as_ptr().cast()) };
    let hdr = params.hdr;
    assert_eq!(({ hdr.header }, { hdr.version }, { hdr.boot_flag }), (0x5372_6448, 0x20f, 0xaa55));
    assert_eq!(({ hdr.type_of_loader }, { hdr.loadflags }), (0xff, 1));
    assert_eq!(({ hdr.ramdisk_image }, { hdr.ramdisk_size }), (0x1ff_e000, 5000));
    assert_eq!(({ hdr.cmd_line_ptr }, { hdr.cmdline_size }), (0x2_0000, 2047));
    assert_eq!(({ hdr.pref_address }, { hdr.init_size }), (16 * MIB, 4 * MIB as u32));
    assert_eq!(({ hdr.xloadflags }, { hdr.relocatable_kernel }, { hdr.setup_sects }), (1, 1, 4));
    assert_eq!(({ hdr.initrd_addr_max }, { hdr.syssize }), (0x7fff_ffff, 62));
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!({ params.e820_entries }, 3);
    let entries = params.e820_table;
    let range = |entry: boot_e820_entry| ({ entry.addr }, { entry.size }, { entry.r#type });
    assert_eq!(range(entries[0]), (0, 0xa_0000, 1));
    assert_eq!(range(entries[1]), (0xa_0000, 0x6_0000, 2));
    assert_eq!(range(entries[2]), (MIB, 31 * MIB, 1));
    assert_eq!(range(entries[3]), (0, 0, 0));
}
