//! A terminal for a job that the reader types to.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A pseudo-terminal.
pub struct Terminal(OwnedFd);

impl Terminal {
    pub fn open() -> Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no pseudo-terminal")?;
        grantpt(&controller).context("grantpt")?;
        unlockpt(&controller).context("unlockpt")?;
        Ok(Self(controller))
    }

    /// The job's side of it.
    pub fn stdin(&self) -> Result<Stdio> {
        let path = ptsname(&self.0, Vec::new()).context("ptsname")?;
        let path = path.to_string_lossy().into_owned();
        let user = File::options().read(true).write(true).open(&path);
        Ok(Stdio::from(user.with_context(|| format!("cannot open {path}"))?))
    }

    /// Types what comes from `keys`, for as long as the machine runs. What the
    /// terminal echoes is the job's to show, and dropped.
    pub fn type_what_comes(self, mut keys: File) {
        let mut typed = File::from(self.0);
        if let Ok(mut echo) = typed.try_clone() {
            thread::spawn(move || {
                let mut dropped = [0; 256];
                while echo.read(&mut dropped).is_ok_and(|count| count > 0) {}
            });
        }
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(count @ 1..) = keys.read(&mut buffer) {
                if typed.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
    }
}
