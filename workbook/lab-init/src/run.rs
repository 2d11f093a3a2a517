//! Runs one job and sends on what it writes while it runs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use vmexit_lab_init::job::Bytes;
use vmexit_lab_init::{Ending, Job, Report, Stdin, Stream};

use crate::init::Channel;
use crate::terminal::Terminal;

/// How often the end of a job is looked for.
const POLL: Duration = Duration::from_millis(2);

/// Output is sent on once it is so long, in bytes, or nothing followed for so long.
const PIECE: usize = 16 << 10;
const GATHER: Duration = Duration::from_millis(50);

/// Runs `job`, whose number is `number`, until it ends or its time is over.
/// When this returns, all of its output has been sent.
pub fn run_job(number: usize, job: &Job, channel: &Channel) -> Result<Ending> {
    let keyboard = matches!(job.stdin, Stdin::Keyboard).then(Terminal::open).transpose()?;
    let stdin = match (&job.stdin, &keyboard) {
        (_, Some(terminal)) => terminal.stdin()?,
        (Stdin::Bytes(_), None) => Stdio::piped(),
        (Stdin::Empty | Stdin::Keyboard, None) => Stdio::null(),
    };
    let spawned = Command::new(&job.program)
        .args(&job.arguments)
        .env_clear()
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Ok(Ending::NotStarted(format!("{} does not start: {error}", job.program))),
    };
    let stdout = child.stdout.take().context("the job's stdout was piped")?;
    let stderr = child.stderr.take().context("the job's stderr was piped")?;
    if let (Stdin::Bytes(bytes), Some(mut pipe)) = (&job.stdin, child.stdin.take()) {
        let bytes = bytes.0.clone();
        // A job that does not read them is no failure, and may end before they are written.
        thread::spawn(move || pipe.write_all(&bytes));
    }
    if let Some(terminal) = keyboard {
        terminal.type_what_comes(channel.keys()?);
    }
    thread::scope(|scope| {
        let copies = [
            scope.spawn(|| send_on(number, Stream::Stdout, stdout, channel)),
            scope.spawn(|| send_on(number, Stream::Stderr, stderr, channel)),
        ];
        let ending = wait(&mut child, Duration::from_secs(job.limit_seconds))?;
        for copy in copies {
            copy.join().map_err(|_| anyhow!("a thread that copies output panicked"))??;
        }
        Ok(ending)
    })
}

/// Waits for the job, at most for `limit`; whatever it left running is killed,
/// which also closes the pipes that the copying threads read.
fn wait(child: &mut Child, limit: Duration) -> Result<Ending> {
    let group = Pid::from_child(child);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the job")? {
            // No such group is the usual case: nobody was left in it.
            let _ = kill_process_group(group, Signal::KILL);
            return Ok(ending(status));
        }
        if Instant::now() >= deadline {
            kill_process_group(group, Signal::KILL).context("cannot kill the job")?;
            child.wait().context("cannot wait for the killed job")?;
            return Ok(Ending::TimedOut);
        }
        thread::sleep(POLL);
    }
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, Some(signal)) => Ending::Signal(signal),
        (None, None) => Ending::NotStarted(format!("the kernel gives an unknown end: {status}")),
    }
}

/// Sends on what comes through `pipe`, in pieces that are worth a frame.
fn send_on(job: usize, stream: Stream, mut pipe: impl Read + AsFd, channel: &Channel) -> Result<()> {
    let mut piece = Vec::new();
    let mut buffer = [0; PIECE];
    loop {
        if !piece.is_empty() && (piece.len() >= PIECE || !more_within(&pipe, GATHER)?) {
            let bytes = Bytes(std::mem::take(&mut piece));
            channel.report(&Report::Output { job, stream, bytes })?;
        }
        match pipe.read(&mut buffer).context("cannot read what the job wrote")? {
            0 => break,
            count => piece.extend_from_slice(&buffer[..count]),
        }
    }
    if !piece.is_empty() {
        channel.report(&Report::Output { job, stream, bytes: Bytes(piece) })?;
    }
    Ok(())
}

/// Whether there is more to read, or the end, before `wait` is over.
fn more_within(pipe: &impl AsFd, wait: Duration) -> Result<bool> {
    let wait = Timespec::try_from(wait).context("a wait that fits")?;
    let ready = poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&wait)).context("cannot poll a pipe")?;
    Ok(ready > 0)
}
