//! What an emulated CPU gets wrong, so that a run on it would prove nothing.

use super::Machine;
use super::snapshot::Case;

/// Why `case` says nothing on `machine`, if it does not.
#[must_use]
pub fn reason_not_to_run(machine: Machine, case: &Case) -> Option<&'static str> {
    let steps = case.arguments.iter().any(|argument| argument == "--steps");
    match machine {
        // Seen with Bochs 2.7; it looks as if the single-step trap of an
        // instruction that exits were saved as pending.
        Machine::Intel if steps => Some(
            "Bochs reports the step after an exit twice and runs on past a stepped hlt, so steps are not exact there",
        ),
        Machine::Intel | Machine::Amd => None,
    }
}
