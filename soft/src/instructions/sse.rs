//! SSE and SSE2, as far as they go: none yet.

use iced_x86::Instruction;

use crate::op::Handler;

pub fn handler(_: &Instruction) -> Option<Handler> {
    None
}
