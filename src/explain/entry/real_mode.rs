//! Real mode on a CPU without "unrestricted guest", which runs it as virtual-8086
//! code: the segments must be what that mode makes of their selectors. Their access
//! rights KVM sets itself.

use super::Verdict::{Accepts, RefusesWithoutUnrestricted};
use super::{Rule, SEGMENTS, each};

const OLD_INTEL: super::Verdict = RefusesWithoutUnrestricted(SEGMENTS);

#[rustfmt::skip] // a rule a paragraph
pub const RULES: &[Rule] = &[
    Rule { name: "real-base", intel: OLD_INTEL, amd: Accepts,
        broken: |s| each(&s.six(), |name, segment| {
            let base = u64::from(segment.selector) << 4;
            // After reset CS is the exception: SDM Vol. 3A, "First Instruction Executed".
            let after_reset = name == "CS" && segment.selector == 0xf000 && segment.base == 0xffff_0000;
            (!s.protected() && segment.base != base && !after_reset).then(|| format!(
                "in real mode {name}'s base must be its selector × 16 = {base:#x}, and is {:#x}", segment.base))
        }) },
    Rule { name: "real-limit", intel: OLD_INTEL, amd: Accepts,
        broken: |s| each(&s.six(), |name, segment| (!s.protected() && segment.limit != 0xffff)
            .then(|| format!("in real mode {name}'s limit must be 0xffff, and is {:#x}", segment.limit))) },
    Rule { name: "real-unusable", intel: OLD_INTEL, amd: Accepts,
        broken: |s| each(&s.six()[1..], |name, segment| (!s.protected() && segment.unusable != 0)
            .then(|| format!("in real mode {name} must be usable"))) },
];
