//! Chapter 00: can this machine virtualize? The doctor: looks at the CPU, the
//! modules and the device, runs seven probe guests on this host's KVM and on the
//! software machine, and says which chapters each can run, and what to do about
//! the rest.

use std::io::{self, Write};
use std::process::ExitCode;

use lexopt::prelude::*;
use vmexit::host::{self, Host, KvmFacts, Verdict};
use vmexit::status::Status;

const HELP: &str = "\
ch00: Can this machine virtualize?

Usage: cargo run --bin ch00 -- [OPTIONS]

Options:
  --probes    run the seven probe guests, and print nothing else
  --json      print what was found, the checks and the chapters as JSON
  -h, --help  print this

Exit codes: 0 chapters can run on this KVM; 2 none can, and each line marked fail says what
to do about it.
";

enum Output {
    Text,
    Probes,
    Json,
}

fn main() -> ExitCode {
    let output = match parse() {
        Ok(Some(output)) => output,
        Ok(None) => return print(HELP, Status::Success),
        Err(error) => {
            eprintln!("ch00: {error}\n\n{HELP}");
            return Status::BadInput.into();
        }
    };
    // ANCHOR: doctor
    let host = Host::here();
    let checks = host::check(&host);
    let sick = checks.iter().any(|check| check.verdict == Verdict::Fail);
    let status = if sick { Status::BadInput } else { Status::Success };
    // ANCHOR_END: doctor
    let text = match output {
        Output::Text => host::render(&checks) + "\n" + &probes(host.kvm.as_ref()),
        Output::Probes => probes(host.kvm.as_ref()),
        Output::Json => json(&host, &checks),
    };
    print(&text, status)
}

/// `None` asks for the help.
fn parse() -> Result<Option<Output>, lexopt::Error> {
    let mut output = Output::Text;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("probes") => output = Output::Probes,
            Long("json") => output = Output::Json,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(output))
}

fn print(text: &str, status: Status) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status.into(),
        // A reader that went away (`ch00 | head -1`) has seen what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => status.into(),
        Err(error) => {
            eprintln!("ch00: cannot write stdout: {error}");
            Status::BadInput.into()
        }
    }
}

/// The probe guests on both backends, and the chapters that follow from them.
fn probes(kvm: Option<&KvmFacts>) -> String {
    let host = match kvm.filter(|kvm| !kvm.probes.is_empty()) {
        Some(kvm) => probed("this host's KVM", kvm),
        None => "this host's KVM: no probe guest ran, there is no KVM to run it on\n".to_owned(),
    };
    host + "\n" + &probed("the software machine (--backend soft)", &KvmFacts::of_software())
}

fn probed(machine: &str, facts: &KvmFacts) -> String {
    let mut text = format!("{machine}:\n");
    for probe in &facts.probes {
        text += &format!("  {:<29}{}\n", probe.probe, probe.failure.as_deref().unwrap_or("ran"));
    }
    let (can, cannot) = facts.chapters();
    let list = |chapters: Vec<&str>| if chapters.is_empty() { "none".to_owned() } else { chapters.join(" ") };
    text += &format!("  can run: {}\n", list(can));
    if !cannot.is_empty() {
        text += &format!("  cannot run: {}\n", list(cannot));
    }
    text
}

fn json(host: &Host, checks: &[host::Check]) -> String {
    let (can, cannot) = host.kvm.as_ref().map_or((Vec::new(), Vec::new()), KvmFacts::chapters);
    let software = KvmFacts::of_software();
    let (soft_can, soft_cannot) = software.chapters();
    let report = serde_json::json!({
        "host": host, "checks": checks, "chapters": { "can": can, "cannot": cannot },
        "software_machine": {
            "kvm": software, "chapters": { "can": soft_can, "cannot": soft_cannot },
        },
    });
    format!("{report:#}\n")
}
