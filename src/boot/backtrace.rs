//! How the guest came to where it is: the chain of its frames, read from outside.

use anyhow::{Context, Result};

use crate::guest::Image;
use crate::machine::Machine;

/// A chain longer than this is a circle, or no chain.
const DEEPEST: usize = 64;

// ANCHOR: backtrace
/// The functions that led to where the guest stands, the innermost first, a line each;
/// one that called itself has a line for all its frames.
///
/// Code that keeps frame pointers begins each function with `push rbp; mov rbp, rsp`.
/// So RBP points to the caller's RBP, and above it lies the return address:
///
/// ```text
/// RBP -> | caller's RBP   | -> | its caller's RBP | -> … -> 0
///        | return address |    | return address   |
/// ```
///
/// # Errors
/// The ioctl that failed, with its errno.
pub fn backtrace(machine: &Machine, names: &Image) -> Result<Vec<String>> {
    let mut functions: Vec<(String, usize)> = Vec::new();
    let mut frame = machine.vcpu.get_regs().context("KVM_GET_REGS")?.rbp;
    for _ in 0..DEEPEST {
        let Some([next, returns_to]) = read_frame(machine, frame)? else { break };
        // The return address is behind the call, which may be the function's last instruction.
        let called_from = returns_to.wrapping_sub(1);
        let name = names.nearest(called_from).map_or(format!("{returns_to:#x}"), |(name, _)| name.to_owned());
        match functions.last_mut() {
            Some((last, times)) if *last == name => *times += 1,
            // A panic comes through Rust's own functions, which say nothing of the guest.
            _ if name.starts_with("core::") => {}
            _ => functions.push((name, 1)),
        }
        // A caller's frame lies above: the stack grows down.
        if next <= frame {
            break;
        }
        frame = next;
    }
    let line = |(name, times)| if times > 1 { format!("{name}, {times} times or more") } else { name };
    Ok(functions.into_iter().map(line).collect())
}
// ANCHOR_END: backtrace

/// The two words of a frame, if they can be read.
fn read_frame(machine: &Machine, address: u64) -> Result<Option<[u64; 2]>> {
    let mut words = [0; 2];
    for (word, address) in words.iter_mut().zip([address, address.wrapping_add(8)]) {
        let found = machine.vcpu.translate_gva(address).context("KVM_TRANSLATE")?;
        if found.valid == 0 || !address.is_multiple_of(8) {
            return Ok(None);
        }
        let Ok(bytes) = machine.memory.read(found.physical_address, 8) else { return Ok(None) };
        *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for"));
    }
    Ok(Some(words))
}
