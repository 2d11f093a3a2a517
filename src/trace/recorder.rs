//! Numbers what happens and writes it in every form that was asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::chapter::Chapter;
use crate::disasm;
use crate::exit::Exit;
use crate::explain::Circle;
use crate::guest::{Image, Slots};
use crate::kvm::{kvm_regs, kvm_sregs};
use crate::run::TraceError;
use crate::run::options::{Options, TraceTo};
use crate::status::Status;
use crate::trace::perfetto::Timeline;
use crate::trace::record::{
    Bytes, Direction, EndRecord, EntryRecord, ExitRecord, Hex, ImageRecord, NameRecord, PageRecord,
    PlaceRecord, ReasonRecord, Record, RunRecord, SetRecord, SlotRecord, StepRecord, SymbolRecord, VERSION,
};
use crate::trace::recording::{Input, KEPT_MEMORY, Recording};
use crate::trace::text::Style;
use crate::trace::{Place, State, VcpuId, text};

pub struct Recorder {
    /// Whether the chapter's words and the text trace go to stdout.
    text: bool,
    /// Whether the exits are part of the text.
    exits_shown: bool,
    style: Style,
    /// What was said before there was a machine: a run that finds none prints nothing.
    held: Option<String>,
    json: Option<(String, Box<dyn Write + Send>)>,
    timeline: Option<(String, Timeline)>,
    image: Option<Image>,
    /// Where the listing has instructions.
    starts: Arc<BTreeSet<u64>>,
    exits: u64,
    steps: u64,
    /// An exit whose answer is not known yet.
    waiting: Option<Happened>,
    last_exit: Option<Exit>,
    last_vcpu: Option<VcpuId>,
    last_place: Option<Place>,
    /// Whether every instruction is shown, and with them each change of mode and ring.
    stepping: bool,
    /// The mode and ring of the last instruction that was shown.
    last_mode: Option<(crate::mode::Mode, u8)>,
    stuck: Option<(Place, Option<Circle>)>,
    recordings: Vec<Recording>,
    /// The first failure to write; what comes after it is not written.
    error: Option<TraceError>,
}

/// An exit with everything around it.
struct Happened {
    id: VcpuId,
    exit: Exit,
    place: Option<Place>,
    state: Option<State>,
    /// Whether exits were part of the text when it came.
    shown: bool,
}

impl Recorder {
    pub fn new(chapter: &Chapter, options: &Options) -> Result<Self, TraceError> {
        let mut recorder = Self {
            text: options.text_on_stdout(),
            exits_shown: true,
            style: Style::for_stdout(),
            held: Some(String::new()),
            json: None,
            timeline: None,
            image: None,
            starts: Arc::default(),
            exits: 0,
            steps: 0,
            waiting: None,
            last_exit: None,
            last_vcpu: None,
            last_place: None,
            stepping: options.steps,
            last_mode: None,
            stuck: None,
            recordings: Vec::new(),
            error: None,
        };
        for trace in &options.traces {
            match trace {
                TraceTo::Text => {}
                TraceTo::Json(None) => {
                    recorder.json = Some(("stdout".to_owned(), Box::new(io::stdout())));
                }
                TraceTo::Json(Some(path)) => {
                    let file: Box<dyn Write + Send> = Box::new(create(path)?);
                    recorder.json = Some((path.display().to_string(), file));
                }
                TraceTo::Perfetto(path) => {
                    let timeline = Timeline::new(create(path)?, chapter.name);
                    recorder.timeline = Some((path.display().to_string(), timeline));
                }
            }
        }
        recorder.json(&Record::Run(RunRecord {
            version: VERSION,
            chapter: chapter.name.to_owned(),
            variant: options.variant.map(str::to_owned),
        }));
        Ok(recorder)
    }

    pub fn set_image(&mut self, image: Image) {
        let symbol = |symbol: &crate::guest::Symbol| SymbolRecord {
            name: symbol.name.clone(),
            address: Hex(symbol.address),
        };
        let symbols = image.symbols().iter().map(symbol).collect();
        self.json(&Record::Image(ImageRecord { entry: Hex(image.entry()), symbols }));
        self.starts = Arc::new(disasm::instruction_starts(&image));
        self.image = Some(image);
    }

    pub fn instruction_starts(&self) -> Arc<BTreeSet<u64>> {
        Arc::clone(&self.starts)
    }

    /// Prints a line on stdout, where the text is wanted; holds it back until [`Self::release`].
    pub fn say(&mut self, line: &str) {
        if !self.text || self.error.is_some() {
            return;
        }
        if let Some(held) = &mut self.held {
            held.push_str(line);
            held.push('\n');
            return;
        }
        let written = writeln!(io::stdout().lock(), "{line}");
        self.check("stdout", written);
    }

    /// Whether the exits that come from now on are part of the text.
    pub fn show_exits(&mut self, shown: bool) {
        self.exits_shown = shown;
    }

    /// Whether an exit is written anywhere, with its instruction.
    pub fn shows_exits(&self) -> bool {
        self.text && self.exits_shown || self.json.is_some() || self.timeline.is_some()
    }

    /// There is a machine, or none is needed: prints what was held back.
    pub fn release(&mut self) {
        if let Some(held) = self.held.take() {
            let written = io::stdout().lock().write_all(held.as_bytes());
            self.check("stdout", written);
        }
    }

    /// A vCPU is about to be entered for the first time; `setup` is what else was set of it. Returns
    /// whether what the hypervisor writes from now on is wanted.
    pub fn entry(&mut self, id: VcpuId, state: &State, setup: Vec<Input>, slots: &Slots) -> bool {
        let ranges = slots.ranges();
        let size: u64 = ranges.iter().map(|(_, size)| size).sum();
        let keep = self.json.is_some() || size <= KEPT_MEMORY;
        let recording = Recording {
            vm: id.vm,
            vcpu: id.vcpu,
            regs: state.regs,
            sregs: state.sregs,
            slots: ranges,
            pages: if keep { slots.pages() } else { Vec::new() },
            setup,
            inputs: Vec::new(),
            exits: 0,
            gap: if size > KEPT_MEMORY {
                Some("its memory is more than the 16 MiB that are kept for a replay")
            } else {
                slots.gap()
            },
            size: 0,
        };
        self.json(&Record::Entry(EntryRecord {
            vm: id.vm,
            vcpu: id.vcpu,
            registers: (&state.regs).into(),
            system: (&state.sregs).into(),
            slots: recording
                .slots
                .iter()
                .map(|(address, size)| SlotRecord { address: Hex(*address), size: Hex(*size) })
                .collect(),
            pages: recording
                .pages
                .iter()
                .map(|(address, bytes)| PageRecord { address: Hex(*address), bytes: Bytes(bytes.clone()) })
                .collect(),
        }));
        let wanted = recording.gap.is_none();
        self.recordings.push(recording);
        wanted
    }

    /// KVM_RUN came back. `span` is when it was called and when it returned.
    pub fn exit(
        &mut self,
        id: VcpuId,
        exit: Exit,
        place: Option<Place>,
        state: Option<State>,
        span: (Instant, Instant),
    ) {
        if let Some(recording) = self.recording(id) {
            recording.exits += 1;
        }
        self.last_vcpu = Some(id);
        let code = place.as_ref().map_or(String::new(), |place| self.code(place));
        self.on_timeline(exit.name(), &exit.to_string(), &code, span);
        let answered = matches!(exit, Exit::IoIn { .. } | Exit::MmioRead { .. });
        self.last_exit = Some(exit.clone());
        self.last_place.clone_from(&place);
        let happened = Happened { id, exit, place, state, shown: self.exits_shown };
        if answered {
            self.waiting = Some(happened);
        } else {
            self.write_exit(happened);
        }
    }

    /// What the host answered to the `in` or MMIO read that exited last.
    pub fn answer(&mut self, bytes: Vec<u8>) {
        let Some(mut happened) = self.waiting.take() else { return };
        if let Exit::IoIn { data, .. } | Exit::MmioRead { data, .. } = &mut happened.exit {
            data.clone_from(&bytes);
        }
        self.input(happened.id, Input::Answer(bytes));
        self.last_exit = Some(happened.exit.clone());
        self.write_exit(happened);
    }

    /// The hypervisor set registers of a guest that has run.
    pub fn set(&mut self, id: VcpuId, regs: Option<&kvm_regs>, sregs: Option<&kvm_sregs>) {
        if let Some(regs) = regs {
            self.input(id, Input::Regs(Box::new(*regs)));
        }
        if let Some(sregs) = sregs {
            self.input(id, Input::Sregs(Box::new(*sregs)));
        }
        self.json(&Record::Set(SetRecord {
            vm: id.vm,
            vcpu: id.vcpu,
            registers: regs.map(Into::into),
            system: sregs.map(Into::into),
        }));
    }

    /// The hypervisor told the guest something that no other record has.
    pub fn input(&mut self, id: VcpuId, input: Input) {
        if let Some(recording) = self.recording(id) {
            recording.give(input);
        }
    }

    fn recording(&mut self, id: VcpuId) -> Option<&mut Recording> {
        let of_this = |recording: &&mut Recording| recording.vm == id.vm && recording.vcpu == id.vcpu;
        // The VM that runs is mostly the last one.
        self.recordings.iter_mut().rev().find(of_this)
    }

    fn write_exit(&mut self, happened: Happened) {
        self.exits += 1;
        let Happened { id, exit, place, state, shown } = happened;
        let code = place.as_ref().map(|place| (place.to_string(), self.code(place)));
        if shown {
            self.head();
            if let Some(place) = place.as_ref().filter(|_| self.stepping) {
                self.say_mode(place);
            }
            self.say(&text::exit(self.style, self.exits, &exit, code.as_ref()));
        }
        if self.json.is_some() {
            let record = self.exit_record(id, &exit, place.as_ref(), state.as_ref());
            self.json(&Record::Exit(record));
        }
    }

    /// Says in which mode and ring the instruction at `place` is, where either has changed.
    fn say_mode(&mut self, place: &Place) {
        if self.last_mode.replace((place.mode, place.ring)) != Some((place.mode, place.ring)) {
            self.say(&text::mode(self.style, place.mode, place.ring));
        }
    }

    /// The heading, above the first line of the trace.
    fn head(&mut self) {
        if self.exits + self.steps == 1 {
            self.say(&text::heading(self.style));
        }
    }

    fn exit_record(
        &self,
        id: VcpuId,
        exit: &Exit,
        place: Option<&Place>,
        state: Option<&State>,
    ) -> ExitRecord {
        let (mut port, mut address, mut size) = (None, None, None);
        let (direction, data) = match exit {
            Exit::IoOut { data, .. } | Exit::MmioWrite { data, .. } => (Some(Direction::Write), Some(data)),
            Exit::IoIn { data, .. } | Exit::MmioRead { data, .. } => (Some(Direction::Read), Some(data)),
            _ => (None, None),
        };
        match exit {
            Exit::IoOut { port: to, size: bytes, .. } | Exit::IoIn { port: to, size: bytes, .. } => {
                (port, size) = (Some(*to), Some(*bytes));
            }
            Exit::MmioWrite { address: to, data } | Exit::MmioRead { address: to, data } => {
                (address, size) = (Some(Hex(*to)), Some(data.len() as u8));
            }
            _ => {}
        }
        let state = state.map(|state| {
            let mut regs = state.regs;
            regs.rip = place.map_or(regs.rip, |place| place.rip);
            (regs, state.sregs)
        });
        ExitRecord {
            vm: id.vm,
            vcpu: id.vcpu,
            exit: self.exits,
            reason: reason(exit),
            text: exit.to_string(),
            port,
            address,
            direction,
            size,
            data: data.map(|data| Bytes(data.clone())),
            at: place.map(|place| self.place_record(place)),
            registers: state.as_ref().map(|(regs, _)| regs.into()),
            system: state.as_ref().map(|(_, sregs)| sregs.into()),
        }
    }

    /// The guest executed the instruction at `place`, which left it in `after`;
    /// `None` where it ran on before it stopped.
    pub fn step(&mut self, id: VcpuId, place: &Place, after: Option<&State>, span: (Instant, Instant)) {
        self.steps += 1;
        let code = self.code(place);
        self.on_timeline(&code, "", "", span);
        self.head();
        self.say_mode(place);
        self.say(&text::step(self.style, &place.to_string(), &code));
        if self.json.is_some() {
            let record = StepRecord {
                vm: id.vm,
                vcpu: id.vcpu,
                step: self.steps,
                at: self.place_record(place),
                registers: after.map(|state| (&state.regs).into()),
                system: after.map(|state| (&state.sregs).into()),
            };
            self.json(&Record::Step(record));
        }
    }

    /// Where the guest was when something outside ended the run.
    pub fn stuck(&mut self, place: Place, circle: Option<Circle>) {
        self.stuck = Some((place, circle));
    }

    /// The loop that it was in, a line each for its instructions and for what it waits for.
    pub fn stuck_in(&self) -> Vec<String> {
        let Some((_, Some(circle))) = &self.stuck else { return Vec::new() };
        let text = |place: &Place| {
            let instruction = place.instruction.as_ref()?;
            Some(disasm::text(instruction, self.image.as_ref()))
        };
        let texts: Vec<String> = circle.places.iter().filter_map(text).collect();
        let mut lines = vec![format!("it goes round in: {}", texts.join("; "))];
        lines.extend(Some(circle.waits.clone()).filter(|waits| !waits.is_empty()));
        lines
    }

    pub fn stuck_at(&self) -> Option<String> {
        let (place, _) = self.stuck.as_ref()?;
        Some(format!("{place}  {}", self.code(place)))
    }

    /// The place of the last exit, as the report of an emulation failure has it. `blame` says that KVM
    /// cannot emulate the instruction, where nobody has said more about it.
    pub fn last_place(&self, blame: bool) -> Option<String> {
        let place = self.last_place.as_ref()?;
        Some(match &place.instruction {
            Some(_) if !blame => format!("{place}  {}", self.code(place)),
            Some(_) => {
                format!("{place}  {}; this KVM cannot emulate that instruction here", self.code(place))
            }
            None => format!(
                "{place}; no instruction can be read there: a guest that does not end in hlt runs on until it \
                 leaves its memory, and a wrong jump leaves it at once"
            ),
        })
    }

    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit.clone()
    }

    /// The recording of the vCPU that exited last, and how many vCPUs its VM has.
    pub fn last_recording(&self) -> Option<(&Recording, usize)> {
        let last = self.last_vcpu?;
        let of_vm = self.recordings.iter().filter(|recording| recording.vm == last.vm);
        let recording = of_vm.clone().find(|recording| recording.vcpu == last.vcpu)?;
        Some((recording, of_vm.count()))
    }

    pub fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    /// Writes the last records; the first error of the whole trace comes back.
    pub fn finish(&mut self, status: Status) -> Result<(), TraceError> {
        if status == Status::Success {
            self.release();
        }
        let end = EndRecord { code: status as u8, exits: self.exits, steps: self.steps };
        self.json(&Record::End(end));
        if let Some((to, mut json)) = self.json.take() {
            let flushed = json.flush();
            self.check(&to, flushed);
        }
        if let Some((to, timeline)) = self.timeline.take() {
            let finished = timeline.finish();
            self.check(&to, finished);
        }
        self.error.take().map_or(Ok(()), Err)
    }

    /// The instruction at a place, and the name that is nearest: `out dx, al  <loop+0x4>`.
    pub fn code(&self, place: &Place) -> String {
        let text = match &place.instruction {
            Some(instruction) => disasm::text(instruction, self.image.as_ref()),
            None => "(no instruction can be read here)".to_owned(),
        };
        match self.symbol(place) {
            Some(name) => format!("{text:<20}  <{name}>"),
            None => text,
        }
    }

    fn symbol(&self, place: &Place) -> Option<String> {
        let (name, offset) = self.image.as_ref()?.nearest(place.linear)?;
        Some(if offset == 0 { name.to_owned() } else { format!("{name}+{offset:#x}") })
    }

    fn place_record(&self, place: &Place) -> PlaceRecord {
        let text = |instruction| disasm::text(instruction, self.image.as_ref());
        PlaceRecord {
            mode: place.mode.to_string(),
            ring: place.ring,
            cs: place.cs,
            rip: Hex(place.rip),
            linear: Hex(place.linear),
            bytes: Bytes(place.bytes.clone()),
            text: place.instruction.as_ref().map(text),
            symbol: self.symbol(place),
        }
    }

    fn json(&mut self, record: &Record) {
        if self.error.is_some() {
            return;
        }
        if let Some((to, json)) = &mut self.json {
            let to = to.clone();
            let written = serde_json::to_writer(&mut *json, record).map_err(io::Error::from);
            let written = written.and_then(|()| json.write_all(b"\n"));
            self.check(&to, written);
        }
    }

    fn on_timeline(&mut self, name: &str, carried: &str, code: &str, span: (Instant, Instant)) {
        if let Some((to, timeline)) = &mut self.timeline {
            let to = to.clone();
            let written = timeline.guest_ran(name, carried, code, span);
            self.check(&to, written);
        }
    }

    fn check(&mut self, to: &str, written: io::Result<()>) {
        if let (Err(error), None) = (written, &self.error) {
            self.error = Some(TraceError { to: to.to_owned(), error });
        }
    }
}

fn reason(exit: &Exit) -> ReasonRecord {
    let record = |(name, number): (&str, u32)| NameRecord { name: name.to_owned(), number };
    match exit.names() {
        Some(names) => ReasonRecord {
            kvm: record(names.kvm),
            intel: names.intel.map(record),
            amd: names.amd.map(record),
        },
        None => ReasonRecord { kvm: record((exit.name(), u32::MAX)), intel: None, amd: None },
    }
}

fn create(path: &Path) -> Result<BufWriter<File>, TraceError> {
    let file = File::create(path);
    file.map(BufWriter::new).map_err(|error| TraceError { to: path.display().to_string(), error })
}
