//! What the first touch of a page costs a guest on this machine, beside the second:
//! the host has to find memory for it, and KVM has to enter it into the tables that
//! translate guest-physical addresses. Chapter 06.
//!
//! ```text
//! cargo run --release --example cold_page
//! ```
//!
//! The guest, 64-bit code, writes a byte to each of 16384 pages, reports by an
//! `out`, and begins again. Each figure is the median over several machines, and
//! has the cost of that one `out` in it, spread over all the pages.

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> ExitCode {
    match measure::report() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let advice = vmexit::explain::way_out(&error);
            eprintln!("cold_page: {error:#}{advice}; `cargo run --bin ch00` says more about this host's KVM");
            vmexit::status::Status::BadInput.into()
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> ExitCode {
    eprintln!(
        "cold_page: this measures the host's KVM, and only Linux on x86-64 has one that VM Exit speaks to"
    );
    vmexit::status::Status::BadInput.into()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod measure {
    use std::io::Error;
    use std::time::Instant;

    use anyhow::{Context, Result, bail, ensure};
    use vmexit::guest::Memory;
    use vmexit::kvm::{Kvm, VcpuExit};
    use vmexit::machine::Machine;
    use vmexit::mode::{enter_long, enter_protected, rflags};
    use vmexit::paging::{PAGE, identity_map};
    use vmexit::segment::Descriptor;

    /// RSI = the first page, RCX = the end, RDX = the distance of pages.
    #[rustfmt::skip] // an instruction a line
    const GUEST: [u8; 18] = [
        0xe6, 0x10,       // again: out  0x10, al
        0x48, 0x89, 0xf7, //        mov  rdi, rsi
        0xc6, 0x07, 0x01, // next:  mov  byte ptr [rdi], 1
        0x48, 0x01, 0xd7, //        add  rdi, rdx
        0x48, 0x39, 0xcf, //        cmp  rdi, rcx
        0x72, 0xf5,       //        jb   next
        0xeb, 0xee,       //        jmp  again
    ];
    const PORT: u16 = 0x10;
    const LOAD_ADDRESS: u64 = 0x1000;
    const TABLES: u64 = 0x2000;
    const FIRST: u64 = 0x20_0000;
    const PAGES: u64 = 16384;
    const ROUNDS: usize = 9;

    pub fn report() -> Result<()> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let (mut cold, mut unmapped, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let [first, second] = passes(&kvm, false)?;
            cold.push(first);
            warm.push(second);
            unmapped.push(passes(&kvm, true)?[0]);
        }
        println!("{:<58} {:>9}", "a guest writes to a page", "ns a page");
        println!("{:<58} {:>9.0}", "for the first time", median(cold));
        println!(
            "{:<58} {:>9.0}",
            "for the first time, and the host has touched it before",
            median(unmapped)
        );
        println!("{:<58} {:>9.1}", "for the second time", median(warm));
        Ok(())
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// Nanoseconds a page of the guest's first two passes over a new machine's memory.
    fn passes(kvm: &Kvm, host_first: bool) -> Result<[f64; 2]> {
        let end = FIRST + PAGES * PAGE;
        let memory = Memory::new(end as usize)?;
        small_pages(&memory)?;
        memory.write(LOAD_ADDRESS, &GUEST)?;
        let cr3 = identity_map(&memory, TABLES)?;
        if host_first {
            (0..PAGES).try_for_each(|page| memory.write(FIRST + page * PAGE, &[2]))?;
        }
        let mut machine = Machine::new(kvm, memory)?;
        let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        enter_protected(&mut sregs, Descriptor::CODE_64);
        enter_long(&mut sregs, cr3);
        machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
        (regs.rip, regs.rflags) = (LOAD_ADDRESS, rflags::FIXED);
        (regs.rsi, regs.rcx, regs.rdx) = (FIRST, end, PAGE);
        machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;

        pass(&mut machine)?;
        Ok([pass(&mut machine)?, pass(&mut machine)?])
    }

    /// Runs to the next report.
    fn pass(machine: &mut Machine) -> Result<f64> {
        let began = Instant::now();
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(PORT, _) => Ok(began.elapsed().as_nanos() as f64 / PAGES as f64),
            exit => bail!("the guest came back with {exit:?}: this KVM does not run 64-bit code"),
        }
    }

    /// Keeps the kernel from answering the first touch with 2 MiB at once: then one page in 512
    /// would pay for all.
    fn small_pages(memory: &Memory) -> Result<()> {
        let start = memory.host_address() as *mut libc::c_void;
        // SAFETY: the range is the mapping that `memory` owns; the advice changes none of its bytes.
        let answer = unsafe { libc::madvise(start, memory.size(), libc::MADV_NOHUGEPAGE) };
        // A kernel without huge pages has nothing to keep back.
        let error = Error::last_os_error();
        ensure!(answer == 0 || error.raw_os_error() == Some(libc::EINVAL), "madvise: {error}");
        Ok(())
    }
}
