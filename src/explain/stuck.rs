//! Where a guest that did not end goes round, and what it seems to wait for.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use crate::mode::rflags;
use crate::trace::{Place, State};

/// The longest circle that is told, in instructions.
const LONGEST: usize = 16;

/// A loop that leads back to where the guest was.
pub(crate) struct Circle {
    /// Its instructions, in their order in memory.
    pub places: Vec<Place>,
    /// What it waits for, as far as that can be seen; empty where it cannot.
    pub waits: String,
}

/// The loop around `place`, found by following the code from there to a jump back. `at` reads the code.
/// None where there is no such jump nearby, or where the instruction is a jump to itself.
pub(crate) fn circle(state: &State, place: &Place, at: &dyn Fn(u64) -> Place) -> Option<Circle> {
    let start = back_from(place, at)?;
    let mut places = vec![at(start)];
    while places.last()?.end() <= place.rip || !leads_to(places.last()?, start) {
        let next = at(places.last()?.end());
        next.instruction?;
        places.push(next);
        if places.len() > LONGEST {
            return None;
        }
    }
    if places.len() < 2 {
        return None;
    }
    let waits = waits(state, &places);
    Some(Circle { places, waits })
}

/// Where the first jump from `place` on leads that goes back to it, or to before it.
fn back_from(place: &Place, at: &dyn Fn(u64) -> Place) -> Option<u64> {
    let mut here = place.clone();
    for _ in 0..LONGEST {
        let instruction = here.instruction?;
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                if target <= place.rip {
                    return Some(target);
                }
                if instruction.flow_control() == FlowControl::UnconditionalBranch {
                    return None;
                }
            }
            FlowControl::Return | FlowControl::IndirectBranch => return None,
            _ => {}
        }
        here = at(here.end());
    }
    None
}

fn leads_to(place: &Place, target: u64) -> bool {
    place.instruction.is_some_and(|jump| {
        let branches = [FlowControl::UnconditionalBranch, FlowControl::ConditionalBranch];
        branches.contains(&jump.flow_control()) && jump.near_branch_target() == target
    })
}

fn waits(state: &State, places: &[Place]) -> String {
    let instructions = || places.iter().filter_map(|place| place.instruction);
    let has = |mnemonic| instructions().any(|instruction: Instruction| instruction.mnemonic() == mnemonic);
    if has(Mnemonic::Hlt) {
        let on = has(Mnemonic::Sti) || state.regs.rflags & rflags::IF != 0 && !has(Mnemonic::Cli);
        return if on {
            "it waits for an interrupt that does not come".to_owned()
        } else {
            "it halts with RFLAGS.IF = 0, and no interrupt can wake it".to_owned()
        };
    }
    let input = instructions().find(|instruction| instruction.mnemonic() == Mnemonic::In);
    input.map_or_else(String::new, |input| {
        let port = if input.op1_kind() == OpKind::Immediate8 {
            u16::from(input.immediate8())
        } else {
            state.regs.rdx as u16
        };
        format!("it asks port {port:#x} again and again, and does not get the answer that it waits for")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::{kvm_regs, kvm_sregs};
    use crate::trace::View;

    /// What is found with the guest, in real mode, at `rip` of this code at 0.
    fn found(code: &[u8], rip: u64, flags: u64) -> Option<(usize, String)> {
        let regs = kvm_regs { rip, rdx: 0x3fd, rflags: flags, ..kvm_regs::default() };
        let state = State { regs, sregs: kvm_sregs::default() };
        let read = |at: u64, length: usize| -> Vec<u8> {
            code.iter().skip(at as usize).take(length).copied().collect()
        };
        let at = |rip| Place::at(&state, rip, &View { read: &read, starts: &|_| false });
        circle(&state, &at(rip), &at).map(|circle| (circle.places.len(), circle.waits))
    }

    /// nop; sti; hlt; jmp to the sti
    #[test]
    fn a_guest_that_halts_in_a_circle_waits_for_an_interrupt() {
        let code = [0x90, 0xfb, 0xf4, 0xeb, 0xfc];
        for rip in 1..=3 {
            let (length, waits) = found(&code, rip, 2).expect("a circle");
            assert_eq!((length, waits.as_str()), (3, "it waits for an interrupt that does not come"));
        }
    }

    /// hlt; jmp to it
    #[test]
    fn with_interrupts_off_nothing_can_come() {
        let (_, waits) = found(&[0xf4, 0xeb, 0xfd], 1, 2).expect("a circle");
        assert!(waits.contains("IF = 0"), "{waits}");
        let (_, waits) = found(&[0xf4, 0xeb, 0xfd], 1, 2 | rflags::IF).expect("a circle");
        assert!(waits.contains("does not come"), "{waits}");
    }

    /// in al, dx; test al, 0x20; jz to the in
    #[test]
    fn a_polled_port_is_named() {
        let (length, waits) = found(&[0xec, 0xa8, 0x20, 0x74, 0xfb], 1, 2).expect("a circle");
        assert_eq!(length, 3);
        assert!(waits.starts_with("it asks port 0x3fd again"), "{waits}");
    }

    #[test]
    fn straight_code_and_a_jump_to_itself_are_no_circle() {
        assert_eq!(found(&[0x90; 40], 1, 2), None);
        assert_eq!(found(&[0xeb, 0xfe], 0, 2), None);
        assert_eq!(found(&[0x90, 0xc3], 0, 2), None);
        assert_eq!(found(&[], 0, 2), None);
    }
}
