//! The differential tester: random instructions from random states on two machines,
//! compared after every one: registers, flags, memory, exceptions with their error
//! codes and CR2, and exits. One of them is the software machine, the other the KVM
//! at hand. Everything follows from the seed.
//!
//! ```text
//! cargo vmexit diff --amd --count 500000
//! cargo run --release --example diff -- --count 100000
//! ```
//!
//! **How a step costs little.** The lab's machines are slow, so what counts is what
//! is not done. A *sequence* of up to 30 instructions starts from one state; each
//! goes on from what the last one left. The registers travel in the page that
//! KVM_RUN shares (`KVM_CAP_SYNC_REGS`), so a step is one ioctl. It ends by itself:
//! there is a `hlt` behind every instruction, and one for every exception's handler;
//! in ring 3 the `hlt` is a #GP. (Single-stepping would do too, but TF shows: in
//! pushed flags, and in what SYSCALL leaves.) Memory is compared after each step
//! where the steps' addresses mostly point, and all of it after a sequence. Measured
//! in the lab, on a host of two busy cores: 500 to 800 steps a second on the AMD
//! machine and 70 to 150 on the Intel one, where an ioctl for each set of registers
//! and 64 KiB of memory restored and compared had made it 300 and 25.
//!
//! **What is not compared** is in two tables, each row with its manual title:
//! [`undefined::RULES`], what the manual leaves to the CPU, and [`referee::LACKS`],
//! what the lab's emulated CPUs do otherwise than the manual says, with the name of
//! the test that covers it instead. `--table` prints both, and how often each
//! mnemonic was compared in each setting; `examples/diff/coverage.md` is what it
//! printed for the lab's machines.
//!
//! In reading order:

mod setting; // Mode, ring and paging.
mod image; // The guest's memory.
mod random; // Chance, from a seed.
mod step; // A sequence of instructions.
mod generator; // Makes them.
mod registers; // MSRs and debug registers.
mod subject; // A machine under test.
mod pair; // Two of them, side by side.
mod compare; // What is the same,
mod undefined; // what need not be,
mod referee; // and where the other one is wrong.
mod minimal; // The smallest case that still differs.
mod coverage; // What was compared how often.
mod campaign; // Sequence after sequence.
mod options; // The command line.
#[cfg(host_kvm)]
mod alarm; // Against guests that never end.

use std::process::ExitCode;

use vmexit::status::Status;

fn main() -> ExitCode {
    let options = match options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("diff: {error}\n\n{}", options::HELP);
            return Status::BadInput.into();
        }
    };
    match campaign::run(&options) {
        Ok(totals) if totals.different == 0 => ExitCode::SUCCESS,
        Ok(_) => Status::Bug.into(),
        Err(error) => {
            eprintln!("diff: {error:#}{}", vmexit::explain::way_out(&error));
            Status::BadInput.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few seconds of the long run, against the host's KVM where it is one to compare with.
    #[test]
    fn the_software_machine_does_what_the_kvm_at_hand_does() {
        let options = options::Options { count: 3000, seed: 5, ..options::Options::default() };
        match campaign::run(&options) {
            Ok(totals) => {
                assert_eq!(totals.different, 0, "the differences are printed above");
                assert!(totals.same >= 3000);
            }
            Err(error) => {
                println!("not compared with a KVM: {error:#}. In the lab it is: cargo vmexit diff --both")
            }
        }
    }

    /// What a CPU did before must not show: a block decoded, an address translated, an exit half done.
    #[test]
    fn a_software_machine_that_ran_much_does_what_a_new_one_does() {
        let options = options::Options { count: 3000, seed: 6, itself: true, ..options::Options::default() };
        let totals = campaign::run(&options).expect("the software machine runs everywhere");
        assert_eq!(totals.different, 0, "the differences are printed above");
        assert!(totals.same >= 3000);
    }
}
