//! How many of the host's instructions one of the guest's costs, where a CPU is a
//! program: chapter 03's interpreter, and the library's software machine.
//!
//! ```text
//! cargo run --release --example host_instructions
//! ```
//!
//! Nothing is timed. A child process runs the guest under `ptrace`, and its parent
//! lets it execute one instruction at a time and counts. Each guest runs twice, a
//! short loop and a longer one; what both spend on setting up cancels out.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the chapter uses all of it")]
#[path = "../chapters/03-a-cpu-in-software/cpu.rs"]
mod cpu;

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> ExitCode {
    counting::main()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> ExitCode {
    eprintln!("host_instructions: this counts by Linux's ptrace on an x86-64 CPU, and this host is another");
    vmexit::status::Status::BadInput.into()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counting {
    use std::io::{Error, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, ExitCode, Stdio};

    use anyhow::{Context, Result, bail, ensure};
    use vmexit::guest::{Image, Memory};
    use vmexit::kvm::{Kvm, VcpuExit};
    use vmexit::machine::Machine;
    use vmexit::status::Status;

    use super::cpu::{Cpu, Exit};

    /// A guest of 16-bit code: `mov sp, STACK`, `mov cx, ROUNDS`, then a loop, then `hlt`.
    struct Guest {
        name: &'static str,
        body: &'static [u8],
        instructions: u64,
    }

    #[rustfmt::skip] // an instruction a line
    const GUESTS: [Guest; 3] = [
        Guest { name: "add, dec, jnz", instructions: 3, body: &[
            0x01, 0xc8, // next: add ax, cx
            0x49,       // dec cx
            0x75, 0xfb, // jnz next
            0xf4,       // hlt
        ] },
        Guest { name: "load, store, dec, jnz", instructions: 4, body: &[
            0xa1, 0x00, 0x18, // next: mov ax, [0x1800]
            0xa3, 0x02, 0x18, // mov [0x1802], ax
            0x49,             // dec cx
            0x75, 0xf7,       // jnz next
            0xf4,             // hlt
        ] },
        Guest { name: "call, ret, dec, jnz", instructions: 4, body: &[
            0xe8, 0x04, 0x00, // next: call function
            0x49,             // dec cx
            0x75, 0xfa,       // jnz next
            0xf4,             // hlt
            0xc3,             // function: ret
        ] },
    ];

    const CPUS: [&str; 2] = ["chapter 03's interpreter", "the software machine"];
    const ROUNDS: [u16; 2] = [4, 14];
    const LOAD_ADDRESS: u64 = 0x1000;
    const MEMORY: usize = 0x2000;
    const STACK: u16 = 0x1f00;

    pub fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let outcome = match arguments.as_slice() {
            [] => measure(),
            [flag, cpu, guest, rounds] if flag == "--guest" => be_counted(cpu, guest, rounds),
            _ => {
                println!("Usage: cargo run --release --example host_instructions");
                return Status::BadInput.into();
            }
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("host_instructions: {error:#}");
                Status::BadInput.into()
            }
        }
    }

    fn measure() -> Result<()> {
        println!("host instructions for one guest instruction\n");
        for (number, cpu) in CPUS.iter().enumerate() {
            println!("{cpu}");
            for (which, guest) in GUESTS.iter().enumerate() {
                // The chapter's CPU knows neither memory nor a stack.
                if number == 0 && which > 0 {
                    continue;
                }
                print!("  {:<24}", guest.name);
                std::io::stdout().flush()?;
                let [short, long] = ROUNDS.map(|rounds| count(number, which, rounds));
                let guest_instructions = u64::from(ROUNDS[1] - ROUNDS[0]) * guest.instructions;
                println!("{:>6.1}", (long? - short?) as f64 / guest_instructions as f64);
            }
        }
        Ok(())
    }

    /// The host instructions of one run, with what a pair of stops costs.
    fn count(cpu: usize, guest: usize, rounds: u16) -> Result<u64> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--guest", &cpu.to_string(), &guest.to_string(), &rounds.to_string()]);
        command.stdin(Stdio::null());
        // SAFETY: between fork and exec, ptrace is one system call that allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(Error::last_os_error()),
            });
        }
        let mut child = command
            .spawn()
            .context("a child process that may be traced (in a container, `--cap-add SYS_PTRACE`)")?;
        let counted = count_steps(&child);
        let _ = child.kill();
        let _ = child.wait();
        counted
    }

    /// Runs to the child's first SIGSTOP, steps to its second, and counts.
    fn count_steps(child: &Child) -> Result<u64> {
        ensure!(wait(child)? == libc::SIGTRAP, "the child did not stop at its exec");
        resume(child, libc::PTRACE_CONT)?;
        ensure!(wait(child)? == libc::SIGSTOP, "the child did not get ready");
        // A guest takes some ten thousand; this ends a mistake.
        for steps in 0..10_000_000 {
            resume(child, libc::PTRACE_SINGLESTEP)?;
            match wait(child)? {
                libc::SIGTRAP => {}
                libc::SIGSTOP => return Ok(steps),
                signal => bail!("the child stopped by signal {signal}"),
            }
        }
        bail!("the child does not come to its end")
    }

    fn resume(child: &Child, request: libc::c_uint) -> Result<()> {
        // SAFETY: neither request reads or writes memory of this process.
        let result = unsafe { libc::ptrace(request, child.id() as libc::pid_t, 0, 0) };
        ensure!(result == 0, "ptrace: {}", Error::last_os_error());
        Ok(())
    }

    /// The signal by which the child has stopped.
    fn wait(child: &Child) -> Result<i32> {
        let mut status = 0;
        // SAFETY: `status` is an int, and lives across the call.
        let result = unsafe { libc::waitpid(child.id() as libc::pid_t, &raw mut status, 0) };
        ensure!(result > 0, "waitpid: {}", Error::last_os_error());
        ensure!(libc::WIFSTOPPED(status), "the child ended before its guest did");
        Ok(libc::WSTOPSIG(status))
    }

    /// In the child: the guest, between two stops.
    fn be_counted(cpu: &str, guest: &str, rounds: &str) -> Result<()> {
        let (cpu, guest, rounds): (usize, usize, u16) = (cpu.parse()?, guest.parse()?, rounds.parse()?);
        let guest = GUESTS.get(guest).context("no such guest")?;
        let ([sp, sp_high], [cx, cx_high]) = (STACK.to_le_bytes(), rounds.to_le_bytes());
        let code = [&[0xbc, sp, sp_high, 0xb9, cx, cx_high], guest.body].concat();
        let memory = Memory::new(MEMORY)?;
        memory.load(&Image::flat(LOAD_ADDRESS, &code))?;
        if cpu == 0 {
            let memory = memory.read(0, MEMORY)?;
            let mut cpu = Cpu { ip: LOAD_ADDRESS as u16, ..Cpu::default() };
            stop();
            let exit = cpu.run(&memory, u64::MAX);
            stop();
            ensure!(exit == Exit::Hlt, "the interpreter ended in {exit:?}");
        } else {
            let mut machine = Machine::new(&Kvm::soft(), memory)?;
            machine.start_at(LOAD_ADDRESS)?;
            // Its caches are made in the first run, and that would take long to count.
            machine.vcpu.run().context("KVM_RUN")?;
            machine.start_at(LOAD_ADDRESS)?;
            stop();
            let exit = machine.vcpu.run().context("KVM_RUN")?;
            let halted = matches!(exit, VcpuExit::Hlt);
            stop();
            ensure!(halted, "the software machine did not come to its hlt");
        }
        Ok(())
    }

    fn stop() {
        // SAFETY: without a tracer it stops the process, which is what it asks for.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}
