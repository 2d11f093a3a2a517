//! Why a control register or an MSR refused a value. Intel SDM Vol. 2B, "MOV—Move
//! to/from Control Registers" and "WRMSR—Write to Model Specific Register".

use iced_x86::{Instruction, Register};

use crate::exception::vector;
use crate::explain::still::{Cause, Still};
use crate::mode::{cr0, cr4, efer};

/// The MSR of EFER.
const EFER: u64 = 0xc000_0080;

/// A MOV to CR0, CR3 or CR4.
pub fn mov(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let value = still.register(instruction.op1_register());
    let s = &still.sregs;
    let refused = |why: String| Some(Cause::new(vector::GP, 0, why));
    let pae = s.cr4 & cr4::PAE != 0;
    match instruction.op0_register() {
        Register::CR0 => {
            let turns_on = value & cr0::PG != 0 && s.cr0 & cr0::PG == 0;
            if value & cr0::PG != 0 && value & cr0::PE == 0 {
                return refused(format!("CR0 = {value:#x} has PG without PE: paging needs protected mode"));
            }
            if value & cr0::NW != 0 && value & cr0::CD == 0 {
                return refused(format!("CR0 = {value:#x} has NW without CD"));
            }
            if value >> 32 != 0 {
                return refused(format!("CR0 = {value:#x} has bits above 31"));
            }
            if turns_on && s.efer & efer::LME != 0 && !pae {
                return refused(
                    "EFER.LME is 1 and CR4.PAE is 0: long mode's tables are those of PAE".to_owned(),
                );
            }
            if turns_on && s.efer & efer::LME != 0 && s.cs.l == 1 {
                return refused(
                    "EFER.LME is 1 and CS.L is 1 already: 64-bit code begins with a far jump".to_owned(),
                );
            }
            if value & cr0::PG == 0 && s.cr0 & cr0::PG != 0 && still.in_64_bit() {
                return refused("64-bit code cannot turn paging off".to_owned());
            }
            if turns_on && pae && s.efer & efer::LME == 0 { pointers(still, s.cr3) } else { None }
        }
        Register::CR3 if still.long() => {
            let bits = still.features.physical_bits;
            let why = format!("CR3 = {value:#x} is wider than the {bits} bits of a physical address");
            if value & !(1 << 63) & u64::MAX << bits != 0 { refused(why) } else { None }
        }
        Register::CR3 if s.cr0 & cr0::PG != 0 && pae => pointers(still, value),
        Register::CR4 if still.long() && value & cr4::PAE == 0 => {
            refused(format!("CR4 = {value:#x} lacks PAE, which long mode needs"))
        }
        Register::CR4 if s.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !still.long() => {
            pointers(still, s.cr3).or_else(|| reserved(value))
        }
        Register::CR4 => reserved(value),
        _ => None,
    }
}

fn reserved(value: u64) -> Option<Cause> {
    let why = format!("CR4 = {value:#x} sets a bit that this CPU does not have");
    Some(Cause::new(vector::GP, 0, why))
}

/// PAE's four pointers, which the CPU loads together with CR3. Intel SDM Vol. 3A, "PDPTE Registers".
fn pointers(still: &Still<'_>, cr3: u64) -> Option<Cause> {
    let table = cr3 & 0xffff_ffe0;
    let reserved = 0xfff0_0000_0000_01e6 | 0x000f_ffff_ffff_f000 & u64::MAX << still.features.physical_bits;
    (0..4).find_map(|number| {
        let at = table + 8 * number;
        let bytes = (still.memory)(at, 8)?;
        let value = u64::from_le_bytes(bytes.try_into().ok()?);
        let bad = value & reserved;
        let why = format!(
            "with CR4.PAE and without EFER.LME this is PAE paging, CR3 points to a table of four pointers, and \
             PDPT[{number}] sets {bad:#x}, which is reserved there"
        );
        let shown = format!("PDPT[{number}] at {at:#x} = {value:#x}");
        (value & 1 != 0 && bad != 0).then(|| Cause::new(vector::GP, 0, why).show(shown))
    })
}

/// WRMSR.
pub fn wrmsr(still: &Still<'_>) -> Option<Cause> {
    let (r, s) = (&still.regs, &still.sregs);
    let (index, value) = (r.rcx & 0xffff_ffff, r.rdx << 32 | r.rax & 0xffff_ffff);
    let why = if index == EFER && s.cr0 & cr0::PG != 0 && (value ^ s.efer) & efer::LME != 0 {
        "EFER.LME cannot change while paging is on".to_owned()
    } else {
        format!("MSR {index:#x} does not exist, or does not take {value:#x}")
    };
    Some(Cause::new(vector::GP, 0, why))
}
