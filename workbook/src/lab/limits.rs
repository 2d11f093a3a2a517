//! What an emulated CPU gets wrong, so that a run on it would prove nothing.

use super::Machine;
use super::snapshot::Case;

/// Why `case` says nothing on `machine`, if it does not.
#[must_use]
pub fn reason_not_to_run(machine: Machine, case: &Case) -> Option<&'static str> {
    let steps = case.arguments.iter().any(|argument| argument == "--steps");
    match machine {
        // Seen with Bochs 2.7: a step is reported twice at the instruction
        // after each exit, and what follows a stepped `hlt` runs.
        Machine::Intel if steps => Some(
            "Bochs saves the single-step trap of an instruction that exits as pending, so stepping is not exact there",
        ),
        Machine::Intel | Machine::Amd => None,
    }
}
