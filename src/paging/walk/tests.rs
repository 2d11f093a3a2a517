//! Each form, each right and each reserved bit, by tables made by hand.

use super::*;
use crate::kvm::kvm_sregs;
use crate::mode::{cr0, cr4, efer, rflags};
use crate::paging::Features;

const CPU: Features = Features { physical_bits: 40, gigabyte_pages: true };
const MEMORY: usize = 0x8000;
const NXE: u64 = efer::NXE;

fn sregs(form: Form, more_cr4: u64, efer: u64) -> kvm_sregs {
    let (cr4, long) = match form {
        Form::Bits32 => (0, 0),
        Form::Pae => (cr4::PAE, 0),
        Form::FourLevel => (cr4::PAE, efer::LME | efer::LMA),
        Form::FiveLevel => (cr4::PAE | cr4::LA57, efer::LME | efer::LMA),
    };
    kvm_sregs {
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4 | more_cr4,
        efer: efer | long,
        ..kvm_sregs::default()
    }
}

/// Memory with these entries, an address and a value each, of the form's size.
fn tables(form: Form, entries: &[(u64, u64)]) -> Memory {
    let memory = Memory::new(MEMORY).expect("32 KiB");
    for (address, value) in entries {
        let bytes = &value.to_le_bytes()[..form.entry_size()];
        memory.write(*address, bytes).expect("inside the memory");
    }
    memory
}

fn by(intent: Intent, user: bool) -> Access {
    Access { intent, user }
}

/// The guest-physical address, or the error code.
fn outcome(memory: &Memory, sregs: &kvm_sregs, linear: u64, access: Access) -> Result<u64, u32> {
    let walk = walk(memory, &Paging::of(sregs, 0, CPU), linear, access);
    walk.outcome.map(|mapping| mapping.physical).map_err(|fault| match fault {
        Fault::Page(fault) => fault.error_code,
        Fault::NotCanonical => panic!("a page fault"),
    })
}

#[test]
fn without_paging_an_address_is_its_own() {
    let sregs = kvm_sregs { cr0: cr0::PE, ..kvm_sregs::default() };
    let memory = tables(Form::Bits32, &[]);
    assert_eq!(outcome(&memory, &sregs, 0x1234, Access::READ), Ok(0x1234));
}

#[test]
fn bits_32_takes_ten_bits_a_level_and_pse_a_page_of_4_mib() {
    let form = Form::Bits32;
    let entries = [(0x1004, 0x2003), (0x200c, 0x5003), (0x1008, 0x00c0_0083)];
    let (memory, sregs) = (tables(form, &entries), sregs(form, cr4::PSE, 0));
    assert_eq!(outcome(&memory, &sregs, 0x0040_3123, Access::READ), Ok(0x5123));
    assert_eq!(outcome(&memory, &sregs, 0x0080_3123, Access::READ), Ok(0x00c0_3123));
    let walk = walk(&memory, &Paging::of(&sregs, 0, CPU), 0x0040_3123, Access::READ);
    let read: Vec<_> = walk.steps.iter().map(|step| (step.index, step.address, step.value)).collect();
    assert_eq!(read, [(1, 0x1004, Some(0x2003)), (3, 0x200c, Some(0x5003))]);
    assert_eq!(
        walk.to_string(),
        "32-bit paging, CR3 = 0x1000, a read by ring 0\n  \
         PD[1]      at 0x1004       0x2003       P RW\n  \
         PT[3]      at 0x200c       0x5003       P RW\n  \
         0x403123 -> guest-physical 0x5123"
    );
}

/// Bit 13 of a 4 MiB page's entry is address bit 32, and bit 21 is reserved: SDM Vol. 3A,
/// "Format of a Page-Directory Entry that Maps a 4-MByte Page".
#[test]
fn a_page_of_4_mib_has_the_upper_address_bits_of_pse_36() {
    let form = Form::Bits32;
    let memory = tables(form, &[(0x1000, 0x0000_2083), (0x1004, 0x0020_0083)]);
    let pse = sregs(form, cr4::PSE, 0);
    assert_eq!(outcome(&memory, &pse, 0x123, Access::READ), Ok(0x1_0000_0123));
    assert_eq!(outcome(&memory, &pse, 0x0040_0000, Access::READ), Err(0x9));
    // Without CR4.PSE the bit means nothing, and the entry refers to a table.
    assert_eq!(outcome(&memory, &sregs(form, 0, 0), 0x123, Access::READ), Err(0));
}

#[test]
fn pae_takes_two_bits_then_nine_and_a_page_of_2_mib() {
    let form = Form::Pae;
    let entries = [(0x1018, 0x2001), (0x2008, 0x3003), (0x3018, 0x5003), (0x2010, 0x40_0083)];
    let (memory, sregs) = (tables(form, &entries), sregs(form, 0, 0));
    assert_eq!(outcome(&memory, &sregs, 0xc020_3123, Access::READ), Ok(0x5123));
    assert_eq!(outcome(&memory, &sregs, 0xc040_3123, Access::READ), Ok(0x40_3123));
    // The first table's entries have no R/W bit: chapter 08's broken variant sets it.
    let memory = tables(form, &[(0x1000, 0x2003)]);
    assert_eq!(outcome(&memory, &sregs, 0, Access::READ), Err(0x9));
}

#[test]
fn four_levels_end_at_pages_of_4_kib_2_mib_and_1_gib() {
    let form = Form::FourLevel;
    let entries = [
        (0x1ff8, 0x2003),
        (0x2000, 0x3003),
        (0x3008, 0x4003),
        (0x4018, 0x5003),
        (0x3010, 0x60_0083),
        (0x2008, 0x8000_0083),
    ];
    let (memory, sregs) = (tables(form, &entries), sregs(form, 0, 0));
    assert_eq!(outcome(&memory, &sregs, 0xffff_ff80_0020_3123, Access::READ), Ok(0x5123));
    assert_eq!(outcome(&memory, &sregs, 0xffff_ff80_0041_2345, Access::READ), Ok(0x61_2345));
    assert_eq!(outcome(&memory, &sregs, 0xffff_ff80_5234_5678, Access::READ), Ok(0x9234_5678));
    // Where CPUID lists no pages of 1 GiB, the bit that makes one is reserved.
    let old = Paging::of(&sregs, 0, Features { gigabyte_pages: false, ..CPU });
    let fault = walk(&memory, &old, 0xffff_ff80_5234_5678, Access::READ).outcome.expect_err("reserved");
    assert_eq!(fault, Fault::Page(PageFault { error_code: 0x9, cause: Cause::Reserved(0x80) }));
    let high = walk(&memory, &Paging::of(&sregs, 0, CPU), 0x0000_ff80_0020_3123, Access::READ);
    assert_eq!((high.steps.len(), high.outcome), (0, Err(Fault::NotCanonical)));
}

#[test]
fn five_levels_begin_with_bits_56_to_48() {
    let form = Form::FiveLevel;
    let entries = [(0x1008, 0x2003), (0x2000, 0x3003), (0x3000, 0x8000_0083)];
    let memory = tables(form, &entries);
    let found = outcome(&memory, &sregs(form, 0, 0), 0x0001_0000_0000_0123, Access::READ);
    assert_eq!(found, Ok(0x8000_0123));
}

#[test]
fn an_entry_that_is_not_there_faults_with_what_was_asked() {
    let form = Form::FourLevel;
    let memory = tables(form, &[(0x1000, 0x2007), (0x2000, 0x10_0007)]);
    let asked = |efer, intent, user| {
        outcome(&memory, &sregs(form, 0, efer), 1 << 39, by(intent, user)).expect_err("not present")
    };
    assert_eq!(asked(NXE, Intent::Read, false), 0x0);
    assert_eq!(asked(NXE, Intent::Write, true), 0x6);
    assert_eq!(asked(NXE, Intent::Fetch, false), 0x10);
    // Without NXE or SMEP a fetch cannot be told from a read.
    assert_eq!(asked(0, Intent::Fetch, true), 0x4);
    // The second entry refers to a table outside the memory.
    let walk = walk(&memory, &Paging::of(&sregs(form, 0, 0), 0, CPU), 0x1000, Access::READ);
    let fault = Fault::Page(PageFault { error_code: 0, cause: Cause::NoTable });
    assert_eq!((walk.steps.len(), walk.outcome), (3, Err(fault)));
}

#[test]
fn a_right_holds_only_where_every_level_gives_it() {
    let form = Form::Bits32;
    let (all, supervisor, read_only) = (0x7, 0x3, 0x5);
    let sregs = kvm_sregs { cr0: cr0::PE | cr0::PG | cr0::WP, ..sregs(form, 0, 0) };
    let faults = |directory: u64, page: u64, access| {
        let memory = tables(form, &[(0x1000, 0x2000 | directory), (0x2000, 0x5000 | page)]);
        outcome(&memory, &sregs, 0, access).err()
    };
    for (directory, page) in [(all, supervisor), (supervisor, all)] {
        assert_eq!(faults(directory, page, by(Intent::Read, true)), Some(0x5));
        assert_eq!(faults(directory, page, by(Intent::Write, false)), None);
    }
    for (directory, page) in [(all, read_only), (read_only, all)] {
        assert_eq!(faults(directory, page, by(Intent::Write, true)), Some(0x7));
        assert_eq!(faults(directory, page, by(Intent::Write, false)), Some(0x3));
        assert_eq!(faults(directory, page, by(Intent::Read, true)), None);
    }
}

#[test]
fn write_protect_off_lets_ring_0_write_what_is_read_only() {
    let form = Form::Bits32;
    let memory = tables(form, &[(0x1000, 0x2005), (0x2000, 0x5005)]);
    let sregs = sregs(form, 0, 0);
    assert_eq!(outcome(&memory, &sregs, 0, by(Intent::Write, false)), Ok(0x5000));
    assert_eq!(outcome(&memory, &sregs, 0, by(Intent::Write, true)), Err(0x7));
}

#[test]
fn nx_needs_nxe_and_is_reserved_without() {
    let form = Form::Pae;
    let entries = [(0x1000, 0x2001), (0x2000, 0x3007), (0x3000, 1 << 63 | 0x5007)];
    let memory = tables(form, &entries);
    let fetch = by(Intent::Fetch, false);
    assert_eq!(outcome(&memory, &sregs(form, 0, NXE), 0, fetch), Err(0x11));
    assert_eq!(outcome(&memory, &sregs(form, 0, NXE), 0, Access::READ), Ok(0x5000));
    assert_eq!(outcome(&memory, &sregs(form, 0, 0), 0, Access::READ), Err(0x9));
}

#[test]
fn smep_and_smap_keep_ring_0_from_the_pages_of_ring_3() {
    let form = Form::FourLevel;
    let entries = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87)];
    let memory = tables(form, &entries);
    let both = sregs(form, cr4::SMEP | cr4::SMAP, 0);
    assert_eq!(outcome(&memory, &both, 0, by(Intent::Fetch, false)), Err(0x11));
    assert_eq!(outcome(&memory, &both, 0, by(Intent::Read, false)), Err(0x1));
    assert_eq!(outcome(&memory, &both, 0, by(Intent::Write, true)), Ok(0));
    let lifted = walk(&memory, &Paging::of(&both, rflags::AC, CPU), 0, Access::READ);
    assert!(lifted.outcome.is_ok());
}

#[test]
fn bits_that_must_be_zero_are_found_at_every_level() {
    let form = Form::FourLevel;
    let sregs = sregs(form, 0, NXE);
    let good = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x5003)];
    for (level, bit) in [(0, 7), (0, 40), (1, 51), (2, 40), (3, 45)] {
        let mut entries = good;
        entries[level].1 |= 1 << bit;
        assert_eq!(outcome(&tables(form, &entries), &sregs, 0, Access::READ), Err(0x9), "{level} {bit}");
    }
    // Inside a large page's address.
    for large in [(0x3000, 0x2083), (0x2000, 0x20_0083)] {
        let memory = tables(form, &[(0x1000, 0x2003), (0x2000, 0x3003), large]);
        assert_eq!(outcome(&memory, &sregs, 0, Access::READ), Err(0x9));
    }
}
