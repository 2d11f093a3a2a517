//! The run as a timeline, in the Chrome trace-event format that
//! ui.perfetto.dev and chrome://tracing open: one track for the guest, one for
//! the hypervisor, so that every trip between the two can be seen.

use std::io::{self, Write};
use std::time::Instant;

use serde_json::{Value, json};

const PROCESS: u32 = 1;
const GUEST: u32 = 1;
const HOST: u32 = 2;

/// Writes the array form of the format, an event at a time.
pub struct Timeline {
    out: Box<dyn Write + Send>,
    began: Option<Instant>,
    /// When KVM_RUN returned last, and the exit that the host handles since then.
    handling: Option<(Instant, String)>,
    chapter: String,
}

impl Timeline {
    pub fn new(out: impl Write + Send + 'static, chapter: &str) -> Self {
        Self { out: Box::new(out), began: None, handling: None, chapter: chapter.to_owned() }
    }

    /// The guest ran from `entered` to `left`, and came back with this exit.
    pub fn guest_ran(
        &mut self,
        name: &str,
        carried: &str,
        code: &str,
        (entered, left): (Instant, Instant),
    ) -> io::Result<()> {
        if self.began.is_none() {
            self.began = Some(entered);
            self.name_tracks()?;
        }
        if let Some((since, exit)) = self.handling.take() {
            self.span(HOST, &format!("after {exit}"), (since, entered), json!({}))?;
        }
        self.span(
            GUEST,
            &format!("until {name}"),
            (entered, left),
            json!({ "carried": carried, "instruction": code }),
        )?;
        self.handling = Some((left, name.to_owned()));
        Ok(())
    }

    /// Closes the array.
    pub fn finish(mut self) -> io::Result<()> {
        if self.began.is_none() {
            self.name_tracks()?;
        }
        self.out.write_all(b"\n]\n")?;
        self.out.flush()
    }

    fn name_tracks(&mut self) -> io::Result<()> {
        self.out.write_all(b"[\n")?;
        let name = format!("VM Exit {}", self.chapter);
        let process = json!({"name": "process_name", "ph": "M", "pid": PROCESS, "args": {"name": name}});
        write!(self.out, "{process}")?;
        let tracks = [(GUEST, "non-root: KVM_RUN, the guest"), (HOST, "root: the hypervisor's own code")];
        for (track, name) in tracks {
            self.event(&json!({"name": "thread_name", "ph": "M", "pid": PROCESS, "tid": track, "args": {"name": name}}))?;
        }
        Ok(())
    }

    fn span(
        &mut self,
        track: u32,
        name: &str,
        (from, to): (Instant, Instant),
        args: Value,
    ) -> io::Result<()> {
        let began = self.began.unwrap_or(from);
        let microseconds = |from: Instant, to: Instant| to.duration_since(from).as_nanos() as f64 / 1000.0;
        self.event(&json!({
            "name": name, "ph": "X", "pid": PROCESS, "tid": track,
            "ts": microseconds(began, from), "dur": microseconds(from, to), "args": args,
        }))
    }

    fn event(&mut self, event: &Value) -> io::Result<()> {
        write!(self.out, ",\n{event}")
    }
}
