//! From PID 1's first instruction to the machine's end.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use vmexit_lab_init::job::ORDERS_PATH;
use vmexit_lab_init::{Orders, Report};

use crate::heartbeat;
use crate::run::run_job;

/// The machine's end of the channel to the host: COM2.
const CHANNEL: &str = "/dev/ttyS1";

/// Does everything PID 1 is there for, then switches the machine off. The host
/// ends the emulator as soon as it has read the last report; switching off is
/// for the case that nobody reads it.
pub fn run() -> ! {
    if let Err(error) = mount_the_basics().and_then(|()| serve()) {
        // The console is all that is left when the channel cannot be opened.
        eprintln!("vmexit-lab-init: {error:#}");
    }
    let error = reboot(RebootCommand::PowerOff);
    panic!("the machine could not be switched off: {error:?}");
}

fn mount_the_basics() -> Result<()> {
    for (kind, place) in [
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind} on {place}"))?;
    }
    Ok(())
}

/// Opens the channel and carries out the orders; a failure goes to the host too.
fn serve() -> Result<()> {
    let channel = Channel::open()?;
    if let Err(error) = carry_out(&channel) {
        channel.report(&Report::Failed { reason: format!("{error:#}") })?;
    }
    channel.drain()
}

fn carry_out(channel: &Channel) -> Result<()> {
    let text = fs::read_to_string(ORDERS_PATH).with_context(|| format!("cannot read {ORDERS_PATH}"))?;
    let orders: Orders = serde_json::from_str(&text).with_context(|| format!("{ORDERS_PATH} is no order"))?;
    wait_for_the_tsc()?;
    for module in &orders.modules {
        load_module(module)?;
    }
    if !orders.modules.is_empty() {
        ensure!(
            Path::new("/dev/kvm").exists(),
            "the modules {} loaded, and yet there is no /dev/kvm",
            orders.modules.join(", ")
        );
    }
    if orders.heartbeat {
        heartbeat::start()?;
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    channel.report(&Report::Ready { kernel })?;
    for (number, job) in orders.jobs.iter().enumerate() {
        channel.report(&Report::Started { job: number })?;
        let ending = run_job(number, job, channel)?;
        channel.report(&Report::Finished { job: number, ending })?;
    }
    channel.report(&Report::Done)
}

/// Waits until Linux knows the time stamp counter's rate: it measures it for about
/// a second after the boot. KVM takes the rate from it once, when it is loaded, and
/// compares it at each vCPU. Where a better value has come in between, it gives the
/// vCPU none, and then the TSC-deadline timer of its local APIC never fires.
fn wait_for_the_tsc() -> Result<()> {
    const SOURCES: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    const LONGEST: Duration = Duration::from_secs(30);
    let started = Instant::now();
    while started.elapsed() < LONGEST {
        let sources = fs::read_to_string(SOURCES).with_context(|| format!("cannot read {SOURCES}"))?;
        let has = |name| sources.split_whitespace().any(|source| source == name);
        // `tsc-early` is the counter before it was measured, `tsc` after; a machine may have neither.
        if has("tsc") || !has("tsc-early") {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn load_module(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open the kernel module {path}"))?;
    finit_module(&file, c"", 0).with_context(|| format!("the kernel refuses the module {path}"))
}

/// The way to the host.
pub struct Channel {
    port: File,
    next_frame: Mutex<u64>,
}

impl Channel {
    /// Opens COM2 and makes it a channel for bytes, not a terminal.
    fn open() -> Result<Self> {
        let port = File::options()
            .read(true)
            .write(true)
            .open(CHANNEL)
            .with_context(|| format!("cannot open {CHANNEL}"))?;
        let mut settings = tcgetattr(&port).with_context(|| format!("{CHANNEL} is no terminal"))?;
        settings.make_raw();
        settings.set_speed(115_200).context("115200 baud")?;
        tcsetattr(port.as_fd(), OptionalActions::Now, &settings)
            .with_context(|| format!("cannot set up {CHANNEL}"))?;
        let channel = Self { port, next_frame: Mutex::new(0) };
        // Ends whatever the port said before, so that frame 0 begins a line.
        channel.send("\n")?;
        Ok(channel)
    }

    /// Sends one report.
    pub fn report(&self, report: &Report) -> Result<()> {
        let mut next = self.next_frame.lock().expect("no thread panics while it sends");
        let number = *next;
        *next += 1;
        self.send(&vmexit_lab_init::frame::encode(number, report))
    }

    fn send(&self, text: &str) -> Result<()> {
        use std::io::Write;
        (&self.port).write_all(text.as_bytes()).with_context(|| format!("cannot write to {CHANNEL}"))
    }

    /// What the reader types.
    pub fn keys(&self) -> Result<File> {
        self.port.try_clone().with_context(|| format!("cannot read from {CHANNEL}"))
    }

    /// Waits until the last byte has left.
    fn drain(&self) -> Result<()> {
        tcdrain(&self.port).with_context(|| format!("cannot drain {CHANNEL}"))
    }
}
