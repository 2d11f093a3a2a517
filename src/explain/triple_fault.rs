//! The post-mortem of a triple fault: the run is played again on the software
//! machine, and the chain is told from the instruction that died to the double
//! fault that could not be delivered. Chapter 09.

use crate::exception::{Exception, vector};
use crate::explain::replay::{Otherwise, Replay};
use crate::explain::still::{Cause, Still};
use crate::explain::{delivery, instruction};
use crate::kvm::FailedDelivery;
use crate::trace::{Place, Recording, State, View};

/// What there is to say about the shutdown that a recorded run ended in, a line each. `vcpus` is the
/// number of vCPUs of its VM, `code` tells a place's instruction, with the name that is nearest.
pub(crate) fn post_mortem(
    recording: &Recording,
    vcpus: usize,
    code: &dyn Fn(&Place) -> String,
) -> Vec<String> {
    match tell(recording, vcpus, code) {
        Ok(lines) => lines,
        Err(reason) => vec![format!("no post-mortem: {reason}")],
    }
}

fn tell(
    recording: &Recording,
    vcpus: usize,
    code: &dyn Fn(&Place) -> String,
) -> Result<Vec<String>, Otherwise> {
    let replay = Replay::of_shutdown(recording, vcpus)?;
    let (regs, sregs) = replay.registers()?;
    let memory = |address: u64, length: usize| replay.read(address, length);
    let still = Still { regs, sregs, features: replay.features(), memory: &memory };
    let state = State { regs, sregs };
    let read = |linear: u64, length: usize| still.code(linear, length);
    let place = Place::at(&state, regs.rip, &View { read: &read, starts: &|_| false });

    let mut lines = vec![
        "post-mortem, by a replay on the software machine:".to_owned(),
        format!("  it died at {place}  {}", code(&place)),
    ];
    let failed = replay.failed_deliveries();
    for (number, step) in failed.iter().enumerate() {
        let name = Exception::name(step.vector);
        if number == 0 {
            let what = exception(step.vector, step.error_code, step.cr2);
            let cause = if step.from_outside { None } else { own_cause(&still, &place, step) };
            let sender = if step.from_outside { ", sent by the hypervisor" } else { "" };
            tell_step(&mut lines, &format!("1. {what}{sender}"), cause);
        } else if step.vector == vector::DF {
            let (first, second) = (failed[number - 1].vector, failed[number - 1].met);
            let (first, second) = (Exception::name(first), Exception::name(second));
            lines.push(format!("     {first} and then {second} make a double fault"));
        }
        let met = exception(step.met, step.met_code, step.met_cr2);
        let cause = delivery::refusal(&still, step.vector, false);
        let cause = cause.filter(|cause| cause.explains(step.met, step.met_code.unwrap_or(0)));
        tell_step(&mut lines, &format!("{}. while {name} is delivered: {met}", number + 2), cause);
    }
    lines.push(
        "     and an exception during #DF shuts the CPU down: Intel SDM Vol. 3A, \"Double Fault Exception (#DF)\""
            .to_owned(),
    );
    Ok(lines)
}

/// Why the instruction raised the first one.
fn own_cause(still: &Still<'_>, place: &Place, step: &FailedDelivery) -> Option<Cause> {
    let code = step.error_code.unwrap_or(0);
    instruction::cause(still, place.instruction.as_ref(), step.vector, code, step.cr2)
}

fn exception(vector: u8, code: Option<u16>, cr2: u64) -> Exception {
    Exception { vector, error_code: u32::from(code.unwrap_or(0)), cr2 }
}

/// A line, and below it what shows the cause, unless it was shown before.
fn tell_step(lines: &mut Vec<String>, what: &str, cause: Option<Cause>) {
    let Some(cause) = cause else { return lines.push(format!("  {what}")) };
    lines.push(format!("  {what}:"));
    lines.push(format!("     {}", cause.sentence));
    for shown in cause.shown {
        let line = format!("       {shown}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
}
