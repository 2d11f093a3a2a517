//! What stands between a chapter's `vcpu.run()` and `KVM_RUN`: the deadline,
//! Ctrl-C, single-stepping, and the trace.

use std::cell::{Cell, RefCell};
use std::mem::transmute;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::exit::Exit;
use crate::explain::{self, EntryState};
use crate::guest::Slots;
use crate::kvm::{Result, VcpuBackend, VcpuExit, kvm_regs, kvm_sregs};
use crate::paging::Form;
use crate::run::Run;
use crate::run::handlers::{self, HLT, Stops};
use crate::run::interrupt::Kick;
use crate::run::trap_flag::Kept;
use crate::status::complain;
use crate::trace::{Input, Place, State, VcpuId, View};

/// Signal numbers and errnos are the kernel's on x86-64 Linux.
const EINTR: i32 = 4;
/// The MSR that says where `syscall` leads. Intel SDM Vol. 4, "Architectural MSRs".
const LSTAR: u32 = 0xc000_0082;
/// MSRs that VM entry checks.
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const PAT: u32 = 0x277;

/// Watches one vCPU. Fields drop in this order: the timer goes first.
pub struct Watch {
    kick: Option<Kick>,
    run: Run,
    vcpu: VcpuId,
    slots: Arc<Mutex<Slots>>,
    entered: bool,
    /// The system registers as the chapter set them before the first entry: KVM may mend what it is
    /// given, and the checks of VM entry are about what was given.
    given: Cell<Option<kvm_sregs>>,
    /// What else was set before the first entry.
    setup: RefCell<Vec<Input>>,
    /// Whether the last entry asked for an interrupt window.
    window: bool,
    /// The last exit waits for an answer, which lies in the kvm_run page from the
    /// chapter's handler on: the place and its length.
    answer: Option<(*const u8, usize)>,
    /// The last exit was I/O, which KVM completes at the next `KVM_RUN`.
    io_pending: bool,
    stepping: bool,
    /// `immediate_exit` as the chapter has set it; kvm_run's own is the watch's to use.
    immediate_exit: u8,
}

/// A step that has begun: the instruction, and the state before it.
struct Step {
    place: Place,
    state: State,
    kept: Kept,
    overwritten: Vec<Overwritten>,
}

/// A place at which [`HLT`] stands while a step lasts, and what was there.
struct Overwritten {
    linear: u64,
    physical: u64,
    byte: u8,
}

// SAFETY: the pointers lead into the kvm_run page of the vCPU that owns this watch, and go to
// another thread only together with it.
unsafe impl Send for Watch {}

impl Watch {
    pub fn new(run: Run, vm: u32, vcpu: u64, slots: Arc<Mutex<Slots>>) -> Self {
        let stepping = run.options().steps;
        Self {
            kick: None,
            run,
            vcpu: VcpuId { vm, vcpu },
            slots,
            entered: false,
            given: Cell::new(None),
            setup: RefCell::default(),
            window: false,
            answer: None,
            io_pending: false,
            stepping,
            immediate_exit: 0,
        }
    }

    /// The hypervisor has set registers. Before the first entry they are part of the state that
    /// the guest starts with.
    pub fn note_set(&self, regs: Option<&kvm_regs>, sregs: Option<&kvm_sregs>) {
        if self.entered {
            self.run.recorder().set(self.vcpu, regs, sregs);
        } else if let Some(sregs) = sregs {
            self.given.set(Some(*sregs));
        }
    }

    /// The hypervisor has set something else.
    pub fn tell(&self, input: Input) {
        if self.entered {
            self.run.recorder().input(self.vcpu, input);
        } else {
            self.setup.borrow_mut().push(input);
        }
    }

    /// Notes what nobody has said: writes to the guest's memory, and what kvm_run asks for.
    fn note_unsaid(&mut self, vcpu: &mut VcpuBackend) {
        let window = vcpu.wants_interrupt_window();
        if std::mem::replace(&mut self.window, window) != window {
            self.tell(Input::InterruptWindow(window));
        }
        let slots = self.slots.lock().expect("nobody panics while holding the slots");
        for (address, bytes) in slots.logs().iter().flat_map(|log| log.take()) {
            self.tell(Input::Memory(address, bytes));
        }
    }

    pub fn set_immediate_exit(&mut self, value: u8) {
        self.immediate_exit = value;
    }

    /// Enters the guest, and records the exit that it comes back with.
    pub fn run(&mut self, vcpu: &mut VcpuBackend) -> Result<VcpuExit<'static>> {
        self.take_answer();
        self.enter(vcpu)?;
        loop {
            // With `immediate_exit` set, KVM_RUN completes the I/O of the last exit and goes no
            // further: a step then starts from the state that the instruction left.
            let completing = self.stepping && std::mem::take(&mut self.io_pending);
            vcpu.set_kvm_immediate_exit(if completing { 1 } else { self.immediate_exit });
            if self.run.stopped().is_some() {
                self.note_place(vcpu);
                return Err(crate::kvm::Error::new(EINTR));
            }
            let step = if self.stepping && !completing { Some(self.prepare_step(vcpu)?) } else { None };
            let entered = Instant::now();
            let result = vcpu.run();
            let left = Instant::now();
            // SAFETY: an exit borrows the vCPU for the sake of its slices. They lie in the kvm_run
            // page, which stays mapped while the vCPU lives and which nobody writes before the
            // next KVM_RUN; the facade gives the exit to the caller under the vCPU's lifetime again.
            let result: Result<VcpuExit<'static>> =
                result.map(|exit| unsafe { transmute::<VcpuExit<'_>, VcpuExit<'static>>(exit) });
            let mut stepped = matches!(result, Ok(VcpuExit::Debug(_)));
            if let Some(step) = &step {
                self.restore(step);
                stepped |= matches!(result, Ok(VcpuExit::Hlt)) && self.at_handler(vcpu, step)?;
                step.kept.after(&step.place, vcpu, stepped || result.is_err())?;
            }
            let exit = match result {
                Ok(exit) => exit,
                Err(error) if error.errno() != EINTR => return Err(error),
                Err(error) => {
                    if self.run.stopped().is_some() {
                        self.note_place(vcpu);
                        return Err(error);
                    }
                    if self.immediate_exit != 0 && !completing {
                        return Err(error);
                    }
                    continue;
                }
            };
            if self.stepping && stepped {
                if let Some(Step { place, state, .. }) = step {
                    self.record_step(vcpu, &place, &state, (entered, left))?;
                }
                continue;
            }
            self.record(vcpu, &exit, step.map(|step| step.place), (entered, left))?;
            return Ok(exit);
        }
    }

    /// Before the first entry: the state that the guest starts with, what VM entry may refuse of it,
    /// and its timer.
    fn enter(&mut self, vcpu: &mut VcpuBackend) -> Result<()> {
        if self.kick.is_none() {
            self.kick = Kick::arm(vcpu.immediate_exit(), self.run.time_left());
        }
        self.note_unsaid(vcpu);
        if !self.entered {
            self.entered = true;
            let state = self.state(vcpu)?;
            let slots = self.slots.lock().expect("nobody panics while holding the slots");
            let wanted = self.run.recorder().entry(self.vcpu, &state, self.setup.take(), &slots);
            slots.logs().iter().for_each(|log| if wanted { log.begin() } else { log.end() });
            drop(slots);
            let given = self.given.get().unwrap_or(state.sregs);
            let refused = self.report(&self.entry_state(vcpu, &State { sregs: given, ..state }));
            if self.run.options().check {
                self.run.count_check(refused);
            }
        } else if self.run.options().check {
            let refused = self.report(&self.entry_state(vcpu, &self.state(vcpu)?));
            self.run.count_check(refused);
        }
        Ok(())
    }

    /// Says which rules of VM entry a state breaks, and whether it breaks one.
    fn report(&self, state: &EntryState) -> bool {
        let findings = explain::check(state);
        for finding in &findings {
            complain(format_args!("{}: entry check: {finding}", self.run.chapter().name));
        }
        !findings.is_empty()
    }

    /// All of a state that KVM shows and the rules of VM entry ask about.
    fn entry_state(&self, vcpu: &VcpuBackend, state: &State) -> EntryState {
        let mut entry = EntryState::new(&state.regs, &state.sregs);
        let registers = [
            (SYSENTER_ESP, &mut entry.sysenter_esp),
            (SYSENTER_EIP, &mut entry.sysenter_eip),
            (PAT, &mut entry.pat),
        ];
        for (index, register) in registers {
            *register = vcpu.get_msr(index).unwrap_or(*register);
        }
        let slots = self.slots.lock().expect("nobody panics while holding the slots");
        let pointers = slots.read(Form::Pae.root(state.sregs.cr3), 32);
        for (pointer, bytes) in entry.pointers.iter_mut().zip(pointers.chunks_exact(8)) {
            *pointer = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        entry
    }

    fn state(&self, vcpu: &VcpuBackend) -> Result<State> {
        Ok(State { regs: vcpu.get_regs()?, sregs: vcpu.get_sregs()? })
    }

    /// Turns single-stepping on. At a `hlt` it stays off on a KVM that emulates whole instructions:
    /// such a one runs on past a stepped `hlt`. A CPU exits at it either way.
    fn prepare_step(&self, vcpu: &VcpuBackend) -> Result<Step> {
        let state = self.state(vcpu)?;
        let place = self.seeing(vcpu, |view| Place::at(&state, state.regs.rip, view));
        let stops = if place.is_hlt() && self.run.out_after() {
            Stops::none()
        } else {
            let by_registers = !vcpu.steps_by_trap_flag() || handlers::cpu_has_breakpoints();
            let lstar = || vcpu.get_msr(LSTAR);
            let read = |linear: u64, length: usize| self.read(vcpu, linear, length);
            Stops::at(&place, &state, by_registers, &lstar, &read)
        };
        let kept = Kept::before(&place, &state, vcpu)?;
        vcpu.set_guest_debug(&stops.debug)?;
        let overwritten = stops.overwritten.iter().filter_map(|linear| self.overwrite(vcpu, *linear));
        let overwritten = overwritten.collect();
        Ok(Step { place, state, kept, overwritten })
    }

    /// Puts [`HLT`] at a linear address of the guest's.
    fn overwrite(&self, vcpu: &VcpuBackend, linear: u64) -> Option<Overwritten> {
        let found = vcpu.translate_gva(linear).ok().filter(|found| found.valid != 0)?;
        let physical = found.physical_address;
        let slots = self.slots.lock().expect("nobody panics while holding the slots");
        let byte = *slots.read(physical, 1).first()?;
        slots.write(physical, HLT);
        Some(Overwritten { linear, physical, byte })
    }

    /// Takes each of them away again, unless the guest has written something else there.
    fn restore(&self, step: &Step) {
        let slots = self.slots.lock().expect("nobody panics while holding the slots");
        for Overwritten { physical, byte, .. } in &step.overwritten {
            if slots.read(*physical, 1) == [HLT] {
                slots.write(*physical, *byte);
            }
        }
    }

    /// Whether a `hlt` was one of [`Step::overwritten`], and not the guest's. Then RIP goes back to
    /// where the handler begins.
    fn at_handler(&self, vcpu: &VcpuBackend, step: &Step) -> Result<bool> {
        if step.overwritten.is_empty() {
            return Ok(false);
        }
        let State { mut regs, sregs } = self.state(vcpu)?;
        let linear = sregs.cs.base.wrapping_add(regs.rip).wrapping_sub(1);
        if !step.overwritten.iter().any(|handler| handler.linear == linear) {
            return Ok(false);
        }
        regs.rip -= 1;
        vcpu.set_regs(&regs)?;
        Ok(true)
    }

    /// Records the instruction at `place`, and the one after it where the CPU
    /// held the trap back until then.
    fn record_step(
        &self,
        vcpu: &VcpuBackend,
        place: &Place,
        before: &State,
        span: (Instant, Instant),
    ) -> Result<()> {
        let after = self.state(vcpu)?;
        // A CPU that something else took out of the guest may stop where it was, with nothing done:
        // the lab's Intel machine does so at every host interrupt.
        if after.regs == before.regs && !place.may_jump_to_itself() {
            return Ok(());
        }
        let next = self.seeing(vcpu, |view| Place::at(&after, place.end(), view));
        let mut recorder = self.run.recorder();
        if !place.shadows_the_next() || after.regs.rip == place.end() {
            recorder.step(self.vcpu, place, Some(&after), span);
            return Ok(());
        }
        recorder.step(self.vcpu, place, None, span);
        recorder.step(self.vcpu, &next, Some(&after), (span.1, span.1));
        Ok(())
    }

    /// Records an exit; `stepped` is the instruction that was entered with, when single-stepping.
    fn record(
        &mut self,
        vcpu: &mut VcpuBackend,
        exit: &VcpuExit<'_>,
        stepped: Option<Place>,
        span: (Instant, Instant),
    ) -> Result<()> {
        let owned = Exit::of(exit, &vcpu.details());
        self.answer = match exit {
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => Some((data.as_ptr(), data.len())),
            _ => None,
        };
        self.io_pending = is_io(exit);
        // To ask for the state and to look for the instruction costs as much as the exit itself, or
        // more: a guest with thousands of them, which nobody is shown, is spared both.
        if self.io_pending && stepped.is_none() && !self.run.recorder().shows_exits() {
            self.run.recorder().exit(self.vcpu, owned, None, None, span);
            return Ok(());
        }
        // After SHUTDOWN some KVMs have reset the vCPU: what it shows is not the guest's state.
        let state = if owned == Exit::Shutdown { None } else { Some(self.state(vcpu)?) };
        let (caused, ran) = match (stepped, &state) {
            (Some(place), Some(state)) if place.ran_on_to(state.regs.rip) => (None, Some(place)),
            (stepped, _) => (stepped, None),
        };
        let place = caused.or_else(|| {
            let (state, out_after) = (state.as_ref()?, self.run.out_after());
            Some(self.seeing(vcpu, |view| Place::of_exit(&owned, state, out_after, view)))
        });
        if let Some(ran) = ran {
            self.run.recorder().step(self.vcpu, &ran, None, (span.0, span.0));
        }
        self.run.recorder().exit(self.vcpu, owned, place, state, span);
        Ok(())
    }

    /// Notes where the guest is, for the report of a run that was ended from outside.
    fn note_place(&self, vcpu: &VcpuBackend) {
        if let Ok(state) = self.state(vcpu) {
            let (place, circle) = self.seeing(vcpu, |view| {
                let at = |rip| Place::at(&state, rip, view);
                let place = at(state.regs.rip);
                let circle = explain::circle(&state, &place, &at);
                (place, circle)
            });
            self.run.recorder().stuck(place, circle);
        }
    }

    /// What the chapter's handler answered to the last `in` or MMIO read.
    fn take_answer(&mut self) {
        if let Some((start, length)) = self.answer.take() {
            let mut bytes = vec![0; length];
            // SAFETY: the range lies in the kvm_run page of the vCPU, which is mapped for as long
            // as this watch lives; the handler that wrote it has returned.
            unsafe { std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), length) };
            self.run.recorder().answer(bytes);
        }
    }

    /// Calls `find` with a view of the guest's code.
    fn seeing<T>(&self, vcpu: &VcpuBackend, find: impl FnOnce(&View<'_>) -> T) -> T {
        let starts = self.run.recorder().instruction_starts();
        find(&View {
            read: &|address, length| self.read(vcpu, address, length),
            starts: &|address| starts.contains(&address),
        })
    }

    /// Up to `length` bytes at a linear address, fewer where no memory is.
    fn read(&self, vcpu: &VcpuBackend, linear: u64, length: usize) -> Vec<u8> {
        let slots = self.slots.lock().expect("nobody panics while holding the slots");
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let address = linear.wrapping_add(bytes.len() as u64);
            let to_page_end = 4096 - (address & 0xfff) as usize;
            let Ok(translation) = vcpu.translate_gva(address) else { break };
            if translation.valid == 0 {
                break;
            }
            let wanted = to_page_end.min(length - bytes.len());
            let found = slots.read(translation.physical_address, wanted);
            let whole = found.len() == wanted;
            bytes.extend(found);
            if !whole {
                break;
            }
        }
        bytes
    }
}

fn is_io(exit: &VcpuExit<'_>) -> bool {
    matches!(
        exit,
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) | VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)
    )
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.take_answer();
    }
}
