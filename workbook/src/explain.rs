//! `vmexit explain`: holds states that somebody has written down against the rules
//! of VM entry, and says what either vendor's CPU makes of each.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vmexit::explain::{self, Dump, Finding, Verdict};
use vmexit::mode;
use vmexit::status::Status;

use crate::failure::Failure;

/// What `vmexit explain` was asked for.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// A state as JSON, with `registers` and `system` as in the trace; or a whole trace
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The most missing fields that are named.
const NAMED: usize = 8;

/// Explains every state of the file; the exit code says whether one breaks a rule.
///
/// # Errors
/// When the file cannot be read, is no JSON, or holds no state.
pub fn run(arguments: &ExplainArguments) -> Result<u8> {
    let shown = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file)
        .map_err(|error| Failure::bad_input(format!("{shown}: {error}")))?;
    let report = report(&text).map_err(|sentence| Failure::bad_input(format!("{shown}: {sentence}")))?;
    print!("{}", report.text);
    Ok(if report.broken { Status::GuestFailed } else { Status::Success } as u8)
}

/// What there is to say of a file.
#[derive(Debug)]
struct Report {
    text: String,
    /// A state breaks a rule.
    broken: bool,
}

fn report(json: &str) -> Result<Report, String> {
    let mut report = Report { text: String::new(), broken: false };
    let mut states = 0;
    for (number, value) in serde_json::Deserializer::from_str(json).into_iter().enumerate() {
        let value: serde_json::Value = value.map_err(|error| format!("this is no JSON: {error}"))?;
        let dump = Dump::read(&value).map_err(|error| format!("object {}: {error}", number + 1))?;
        if let Some(dump) = dump {
            states += 1;
            tell(&mut report, number + 1, &dump);
        }
    }
    if states == 0 {
        let sentence = "there is no state in it: an object with \"registers\" and \"system\" as the trace's record \
                        \"entry\" has them, for instance of `cargo run --bin ch05 -- --trace json`";
        return Err(sentence.to_owned());
    }
    Ok(report)
}

fn tell(report: &mut Report, number: usize, dump: &Dump) {
    let mut say = |line: String| {
        report.text.push_str(&line);
        report.text.push('\n');
    };
    say(format!("object {number}: {}", mode::describe(&dump.state.sregs)));
    if !dump.missing.is_empty() {
        say(format!("  missing, and taken as after reset: {}", some(&dump.missing)));
    }
    if !dump.unknown.is_empty() {
        say(format!("  not understood: {}", some(&dump.unknown)));
    }
    let findings = explain::check(&dump.state);
    for finding in &findings {
        say(format!("  {finding}"));
    }
    say(format!("  {}", verdict(&findings)));
    report.broken |= !findings.is_empty();
}

/// What both vendors' CPUs do with this entry.
fn verdict(findings: &[Finding]) -> &'static str {
    let refuses = |verdict: Verdict| matches!(verdict, Verdict::Refuses(_));
    let intel = findings.iter().any(|finding| refuses(finding.intel));
    let old_intel = findings.iter().any(|finding| finding.intel != Verdict::Accepts);
    let amd = findings.iter().any(|finding| refuses(finding.amd));
    match (intel, old_intel, amd) {
        (true, _, true) => "Intel and AMD refuse this entry",
        (true, _, false) => "Intel refuses this entry, AMD accepts it",
        (false, true, true) => "AMD refuses this entry, and so does Intel without unrestricted guest",
        (false, true, false) => {
            "Intel without unrestricted guest refuses this entry; with it, and on AMD, it is accepted"
        }
        (false, false, true) => "AMD refuses this entry, Intel accepts it",
        (false, false, false) => "every CPU enters it",
    }
}

fn some(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_state_is_told_with_what_each_vendor_does() {
        let report = report(r#"{"system": {"cr0": "0x20000001"}}"#).expect("a state");
        assert!(report.broken);
        assert!(report.text.contains("has NW (bit 29) without CD (bit 30)"), "{}", report.text);
        assert!(report.text.contains("\n  AMD refuses this entry"), "{}", report.text);
        assert!(report.text.contains("missing, and taken as after reset: registers, "), "{}", report.text);
    }

    #[test]
    fn a_state_that_is_missing_almost_everything_is_one_after_reset() {
        let report = report(r#"{"registers": {"rip": "0x1000"}}"#).expect("a state");
        assert!(!report.broken && report.text.ends_with("  every CPU enters it\n"), "{}", report.text);
    }

    #[test]
    fn a_file_without_a_state_says_where_one_comes_from() {
        assert!(report("{}").expect_err("no state").contains("--trace json"));
        assert!(report("{").expect_err("cut").starts_with("this is no JSON"));
        assert!(
            report(r#"{"system": {"cs": {"dpl": "x"}}}"#)
                .expect_err("no number")
                .starts_with("object 1: system")
        );
    }
}
