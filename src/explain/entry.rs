//! The guest-state rules of VM entry, each a row of a table: what it asks, who asks
//! it, and where that is written. Intel SDM Vol. 3C, "Checks on the Guest State
//! Area"; AMD APM Vol. 2, "Canonicalization and Consistency Checks".
//!
//! A state is judged as the CPU would judge it, before KVM mends anything. Four rules
//! are left out, because KVM fulfils them whatever it is given: that CR0.NE and
//! CR4.VMXE are set (Intel), that EFER.SVME is set (AMD), and that the VMCS link
//! pointer is valid. So are the fields that KVM keeps to itself or that only newer
//! CPUs load: IA32_RTIT_CTL, IA32_LBR_CTL, IA32_PKRS, UINV, FRED's. The upper bits
//! of limits and access rights have no place in KVM's structs.

mod control;
mod flow;
mod real_mode;
mod segments;
mod state;
mod system;
#[cfg(test)]
mod tests;

use std::fmt;

pub use state::EntryState;

use crate::kvm::{kvm_regs, kvm_segment, kvm_sregs};
use crate::mode::efer;

/// Who enforces a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The CPU refuses the entry; the section of its manual.
    Refuses(&'static str),
    /// Only a CPU without "unrestricted guest" does: it runs real mode as virtual-8086 code.
    RefusesWithoutUnrestricted(&'static str),
    /// The CPU does not look.
    Accepts,
}

/// A rule of VM entry.
pub struct Rule {
    /// A name without spaces, for tests and tables.
    pub name: &'static str,
    /// What Intel's CPUs do: sections are of the SDM, Vol. 3C.
    pub intel: Verdict,
    /// What AMD's do: sections are of the APM, Vol. 2.
    pub amd: Verdict,
    /// A sentence with the values for each register that breaks it.
    pub broken: fn(&EntryState) -> Vec<String>,
}

/// A rule that a state breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// What is wrong, with the values.
    pub sentence: String,
    /// What Intel's CPUs make of it.
    pub intel: Verdict,
    /// What AMD's make of it.
    pub amd: Verdict,
}

/// `DS is not present; Intel refuses that (SDM Vol. 3C, "…"), AMD accepts it`
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match self.intel {
            Verdict::Refuses(section) => write!(f, "; Intel refuses that (SDM Vol. 3C, \"{section}\")")?,
            Verdict::RefusesWithoutUnrestricted(section) => {
                write!(f, "; Intel without unrestricted guest refuses that (SDM Vol. 3C, \"{section}\")")?;
            }
            Verdict::Accepts => f.write_str("; Intel accepts that")?,
        }
        match self.amd {
            Verdict::Refuses(section) | Verdict::RefusesWithoutUnrestricted(section) => {
                write!(f, ", AMD refuses it (APM Vol. 2, \"{section}\")")
            }
            Verdict::Accepts => f.write_str(", AMD accepts it"),
        }
    }
}

const CONTROL: &str = "Checks on Guest Control Registers, Debug Registers, and MSRs";
const SEGMENTS: &str = "Checks on Guest Segment Registers";
const TABLES: &str = "Checks on Guest Descriptor-Table Registers";
const RIP_RFLAGS: &str = "Checks on Guest RIP, RFLAGS, and SSP";
const NON_REGISTER: &str = "Checks on Guest Non-Register State";
const POINTERS: &str = "Checks on Guest Page-Directory-Pointer-Table Entries";
/// AMD's one section.
const VMRUN: &str = "Canonicalization and Consistency Checks";

/// All rules, in the order of Intel's sections.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [control::RULES, segments::RULES, real_mode::RULES, system::RULES, flow::RULES].into_iter().flatten()
}

/// All rules that this state breaks; empty for a state that every CPU enters.
#[must_use]
pub fn check(state: &EntryState) -> Vec<Finding> {
    let of_rule = |rule: &Rule| {
        let finding = |sentence| Finding { rule: rule.name, sentence, intel: rule.intel, amd: rule.amd };
        (rule.broken)(state).into_iter().map(finding).collect::<Vec<_>>()
    };
    rules().flat_map(of_rule).collect()
}

/// The same, of what `KVM_SET_REGS` and `KVM_SET_SREGS` hold.
#[must_use]
pub fn entry_findings(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<Finding> {
    check(&EntryState::new(regs, sregs))
}

/// One sentence where a rule is broken.
fn when(broken: bool, sentence: impl FnOnce() -> String) -> Vec<String> {
    if broken { vec![sentence()] } else { Vec::new() }
}

/// A sentence for each of these registers that breaks a rule.
fn each(
    registers: &[(&'static str, &kvm_segment)],
    broken: impl Fn(&str, &kvm_segment) -> Option<String>,
) -> Vec<String> {
    registers.iter().filter_map(|(name, segment)| broken(name, segment)).collect()
}

fn long_mode(state: &EntryState) -> bool {
    state.sregs.efer & efer::LMA != 0
}
