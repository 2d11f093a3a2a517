//! What a VM exit costs on this machine: port I/O, MMIO and `hlt`, through the
//! library's facade and through bare ioctls.
//!
//! ```text
//! cargo run --release --example exit_cost
//! ```
//!
//! Each figure is the median of several rounds. Facade and ioctls take turns
//! within a round, so whatever else the machine does meets both.

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> ExitCode {
    match measure::report() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let advice = vmexit::explain::way_out(&error);
            eprintln!("exit_cost: {error:#}{advice}; `cargo run` says more about this host's KVM");
            vmexit::status::Status::BadInput.into()
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> ExitCode {
    eprintln!(
        "exit_cost: this measures the host's KVM, and only Linux on x86-64 has one that VM Exit speaks to"
    );
    vmexit::status::Status::BadInput.into()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod measure {
    use std::fs::File;
    use std::io::{Error, IsTerminal, Write};
    use std::os::fd::{AsRawFd, FromRawFd, RawFd};
    use std::ptr::{null_mut, read_volatile};
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, bail, ensure};
    use kvm_bindings::{KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_MMIO, kvm_regs, kvm_run, kvm_sregs};
    use vmexit::guest::Memory;
    use vmexit::kvm::{
        IDENTITY_MAP_ADDRESS, Kvm, TSS_ADDRESS, VcpuExit, VcpuFd, VmFd, kvm_userspace_memory_region,
    };
    use vmexit::mode::rflags;

    /// Real-mode loops of one exit a turn, loaded at 0x1000.
    const LOOPS: [(&str, &[u8], u32); 3] = [
        ("PIO   out dx, al", &[0xee, 0xeb, 0xfd], KVM_EXIT_IO),
        // mov [0x8000], al: past the end of memory
        ("MMIO  mov [0x8000], al", &[0xa2, 0x00, 0x80, 0xeb, 0xfb], KVM_EXIT_MMIO),
        ("HLT   hlt", &[0xf4, 0xeb, 0xfd], KVM_EXIT_HLT),
    ];
    const LOAD_ADDRESS: u64 = 0x1000;
    const MEMORY: usize = 0x2000;
    const ROUNDS: usize = 21;
    /// A round lasts about this long for each of the two ways.
    const ROUND: Duration = Duration::from_millis(25);

    pub fn report() -> Result<()> {
        println!("{:<24} {:>12} {:>12} {:>12} {:>9}", "exit", "facade ns", "ioctl ns", "exits/s", "overhead");
        for (number, (name, code, reason)) in LOOPS.iter().enumerate() {
            let progress = |round: usize| {
                if std::io::stderr().is_terminal() {
                    eprint!("\r\x1b[Kmeasuring {}/{}, round {round}/{ROUNDS}", number + 1, LOOPS.len());
                    let _ = std::io::stderr().flush();
                }
            };
            let costs = measure(code, *reason, progress)?;
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
            let overhead = (costs.facade / costs.ioctl - 1.0) * 100.0;
            let rate = 1e9 / costs.facade;
            println!("{name:<24} {:>12.0} {:>12.0} {rate:>12.0} {overhead:>8.1}%", costs.facade, costs.ioctl);
        }
        Ok(())
    }

    /// Nanoseconds an exit, medians.
    struct Costs {
        facade: f64,
        ioctl: f64,
    }

    fn measure(code: &[u8], reason: u32, progress: impl Fn(usize)) -> Result<Costs> {
        let mut facade = Facade::new(code)?;
        let mut ioctl = Ioctl::new(code)?;
        let exits = (ROUND.as_nanos() as f64 / facade.time(reason, 1000)?).max(100.0) as u32;
        let (mut by_facade, mut by_ioctl) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            progress(round + 1);
            // Who goes first changes, too.
            if round % 2 == 0 {
                by_facade.push(facade.time(reason, exits)?);
                by_ioctl.push(ioctl.time(reason, exits)?);
            } else {
                by_ioctl.push(ioctl.time(reason, exits)?);
                by_facade.push(facade.time(reason, exits)?);
            }
        }
        Ok(Costs { facade: median(by_facade), ioctl: median(by_ioctl) })
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// The guest by way of the library. Fields drop in this order.
    struct Facade {
        vcpu: VcpuFd,
        _vm: VmFd,
        _memory: Memory,
    }

    impl Facade {
        fn new(code: &[u8]) -> Result<Self> {
            let memory = Memory::new(MEMORY)?;
            memory.write(LOAD_ADDRESS, code)?;
            let kvm = Kvm::new().context("/dev/kvm")?;
            let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
            vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).context("KVM_SET_IDENTITY_MAP_ADDR")?;
            vm.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
            // SAFETY: the region is exactly `memory`, which the value owns and drops last.
            unsafe { vm.set_user_memory_region(region(&memory)) }.context("KVM_SET_USER_MEMORY_REGION")?;
            let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
            let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
            (sregs.cs.selector, sregs.cs.base) = (0, 0);
            vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
            vcpu.set_regs(&start()).context("KVM_SET_REGS")?;
            Ok(Self { vcpu, _vm: vm, _memory: memory })
        }

        /// Nanoseconds an exit, over so many exits.
        fn time(&mut self, reason: u32, exits: u32) -> Result<f64> {
            let began = Instant::now();
            for _ in 0..exits {
                match self.vcpu.run().context("KVM_RUN")? {
                    VcpuExit::IoOut(0, _) if reason == KVM_EXIT_IO => {}
                    VcpuExit::MmioWrite(0x8000, _) if reason == KVM_EXIT_MMIO => {}
                    VcpuExit::Hlt if reason == KVM_EXIT_HLT => {}
                    exit => bail!("the guest came back with {exit:?}"),
                }
            }
            Ok(began.elapsed().as_nanos() as f64 / f64::from(exits))
        }
    }

    /// The same guest by ioctls alone. Fields drop in this order, but for the
    /// mapping of kvm_run, which ends with the process.
    struct Ioctl {
        vcpu: File,
        run: *const kvm_run,
        _vm: File,
        _memory: Memory,
    }

    /// `_IO(KVMIO, n)`, `_IOW` and `_IOR` of `include/uapi/linux/kvm.h`, KVMIO = 0xae.
    mod number {
        pub const CREATE_VM: u64 = 0xae01;
        pub const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
        pub const CREATE_VCPU: u64 = 0xae41;
        pub const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
        pub const SET_TSS_ADDR: u64 = 0xae47;
        pub const SET_IDENTITY_MAP_ADDR: u64 = 0x4008_ae48;
        pub const RUN: u64 = 0xae80;
        pub const SET_REGS: u64 = 0x4090_ae82;
        pub const GET_SREGS: u64 = 0x8138_ae83;
        pub const SET_SREGS: u64 = 0x4138_ae84;
    }

    fn ioctl(name: &'static str, fd: &impl AsRawFd, request: u64, argument: u64) -> Result<i32> {
        // SAFETY: `argument` is a number, or the address of a struct of the size that the request
        // has encoded, which lives across the call.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
        ensure!(answer >= 0, "{name}: {}", Error::last_os_error());
        Ok(answer)
    }

    /// A descriptor that an ioctl has just made.
    fn owned(fd: RawFd) -> File {
        // SAFETY: the kernel has returned it to us, and nobody else has it.
        unsafe { File::from_raw_fd(fd) }
    }

    impl Ioctl {
        fn new(code: &[u8]) -> Result<Self> {
            let memory = Memory::new(MEMORY)?;
            memory.write(LOAD_ADDRESS, code)?;
            let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
            let vm = owned(ioctl("KVM_CREATE_VM", &kvm, number::CREATE_VM, 0)?);
            let address = |value: &u64| &raw const *value as u64;
            let identity = address(&IDENTITY_MAP_ADDRESS);
            ioctl("KVM_SET_IDENTITY_MAP_ADDR", &vm, number::SET_IDENTITY_MAP_ADDR, identity)?;
            ioctl("KVM_SET_TSS_ADDR", &vm, number::SET_TSS_ADDR, TSS_ADDRESS as u64)?;
            let region = region(&memory);
            let pointer = &raw const region as u64;
            ioctl("KVM_SET_USER_MEMORY_REGION", &vm, number::SET_USER_MEMORY_REGION, pointer)?;
            let vcpu = owned(ioctl("KVM_CREATE_VCPU", &vm, number::CREATE_VCPU, 0)?);
            let size = ioctl("KVM_GET_VCPU_MMAP_SIZE", &kvm, number::GET_VCPU_MMAP_SIZE, 0)?;
            // SAFETY: a new mapping of the vCPU's own page; the kernel chooses the address.
            let run = unsafe {
                libc::mmap(
                    null_mut(),
                    size as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    vcpu.as_raw_fd(),
                    0,
                )
            };
            ensure!(run != libc::MAP_FAILED, "mmap of kvm_run: {}", Error::last_os_error());
            let mut sregs = kvm_sregs::default();
            ioctl("KVM_GET_SREGS", &vcpu, number::GET_SREGS, &raw mut sregs as u64)?;
            (sregs.cs.selector, sregs.cs.base) = (0, 0);
            ioctl("KVM_SET_SREGS", &vcpu, number::SET_SREGS, &raw const sregs as u64)?;
            let regs = start();
            ioctl("KVM_SET_REGS", &vcpu, number::SET_REGS, &raw const regs as u64)?;
            Ok(Self { vcpu, run: run.cast(), _vm: vm, _memory: memory })
        }

        /// Nanoseconds an exit, over so many exits.
        fn time(&mut self, reason: u32, exits: u32) -> Result<f64> {
            let fd = self.vcpu.as_raw_fd();
            let began = Instant::now();
            for _ in 0..exits {
                // SAFETY: KVM_RUN takes no argument; the guest's memory is `_memory`, which lives.
                let answer = unsafe { libc::ioctl(fd, number::RUN as _, 0) };
                ensure!(answer == 0, "KVM_RUN: {}", Error::last_os_error());
                // SAFETY: `run` is the mapped kvm_run page, which the kernel has filled.
                let got = unsafe { read_volatile(&raw const (*self.run).exit_reason) };
                ensure!(got == reason, "the guest came back with exit reason {got}");
            }
            Ok(began.elapsed().as_nanos() as f64 / f64::from(exits))
        }
    }

    fn region(memory: &Memory) -> kvm_userspace_memory_region {
        kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.size() as u64,
            userspace_addr: memory.host_address(),
        }
    }

    /// DX = 0: the port of the PIO loop.
    fn start() -> kvm_regs {
        kvm_regs { rip: LOAD_ADDRESS, rflags: rflags::FIXED, ..kvm_regs::default() }
    }
}
