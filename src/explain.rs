//! Why it failed, in words. Chapter 02 on.
//!
//! [`entry_findings`] goes through the guest-state rules that Intel's CPUs check
//! at VM entry; [`way_out`] says what to try after an ioctl failed; `triple_fault`
//! tells why a guest died, from the instruction to the double fault.

mod control; // Why a control register refused a value,
mod dump; // A state that was written down.
mod delivery; // an exception found no way to its handler,
mod entry;
mod instruction; // and an instruction raised what it raised.
mod replay; // The run once more.
mod selector; // Descriptors in words.
mod stuck; // The guest that goes round.
mod still; // The guest where it died.
mod transfer;
mod triple_fault; // All of it together.

pub use dump::Dump;
pub use entry::{EntryState, Finding, Rule, Verdict, check, entry_findings, rules};
pub(crate) use stuck::{Circle, circle};
pub(crate) use triple_fault::post_mortem;

use crate::kvm;

const EINTR: i32 = 4;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

/// What to try about an error, as the end of its sentence; empty where there is
/// nothing to add. The ioctl's name is the error's context, `KVM_CREATE_VM`.
#[must_use]
pub fn way_out(error: &anyhow::Error) -> String {
    let Some(errno) = error.root_cause().downcast_ref::<kvm::Error>() else {
        return String::new();
    };
    let ioctl = error.chain().map(ToString::to_string).find(|text| text.starts_with("KVM_"));
    advice(ioctl.as_deref().unwrap_or_default(), errno.errno())
        .map_or(String::new(), |advice| format!("; {advice}"))
}

fn advice(ioctl: &str, errno: i32) -> Option<&'static str> {
    Some(match (ioctl, errno) {
        ("KVM_CREATE_VM", EBUSY) => {
            "another hypervisor (VirtualBox, VMware) holds the CPU's virtualization: end its machines and try again"
        }
        ("KVM_CREATE_VM", ENOMEM) | ("KVM_CREATE_VCPU", ENOMEM) => {
            "the host is out of memory: close something and try again"
        }
        ("KVM_SET_USER_MEMORY_REGION", EINVAL) => {
            "the guest address, the host address and the size must all be multiples of 4096"
        }
        ("KVM_SET_USER_MEMORY_REGION", EEXIST) => "the slot overlaps another one",
        ("KVM_SET_SREGS", EINVAL) => {
            "KVM refuses control registers that no CPU could hold: paging needs CR0.PE, and in long \
             mode CR4.PAE and EFER.LMA beside EFER.LME (Intel SDM Vol. 3A, \"IA-32e Mode\")"
        }
        ("KVM_SET_CPUID2", EINVAL) => "CPUID can be set only before the vCPU first runs",
        ("KVM_RUN", EINTR) => "a signal came",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failed_ioctl_says_what_to_try() {
        let busy: Result<(), _> = Err(kvm::Error::new(EBUSY));
        let error = busy.context("KVM_CREATE_VM").context("chapter").expect_err("it is one");
        assert!(way_out(&error).contains("VirtualBox"));
        let plain = anyhow::anyhow!("something else");
        assert_eq!(way_out(&plain), "");
    }
}
