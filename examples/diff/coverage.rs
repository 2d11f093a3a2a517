//! What was compared how often: mnemonic by setting, and why the rest was not.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Instruction, Mnemonic};

use crate::generator::why_not;
use crate::referee::{LACKS, Referee};
use crate::setting::{SETTINGS, Setting};
use crate::undefined;

/// Counts of steps that were the same.
#[derive(Default)]
pub struct Coverage {
    compared: BTreeMap<Mnemonic, [u64; SETTINGS.len()]>,
    /// What the software machine said that it lacks.
    missing: BTreeSet<Mnemonic>,
}

impl Coverage {
    pub fn note(&mut self, setting: &Setting, instruction: &Instruction) {
        self.compared.entry(instruction.mnemonic()).or_default()[setting.number()] += 1;
    }

    pub fn note_missing(&mut self, instruction: &Instruction) {
        self.missing.insert(instruction.mnemonic());
    }

    /// The tables, in Markdown.
    pub fn print(&self, settings: &[Setting], referee: Referee) {
        println!("## Compared with {referee}\n");
        println!("| mnemonic | {} |", SETTINGS.map(|setting| setting.name).join(" | "));
        println!("|---|{}", "---:|".repeat(SETTINGS.len()));
        for (mnemonic, counts) in &self.compared {
            // An empty cell: code of that size has no such instruction.
            let cells = counts.map(|count| if count == 0 { String::new() } else { count.to_string() });
            println!("| {} | {} |", name_of(*mnemonic), cells.join(" | "));
        }
        println!("\n## Not compared\n\n| mnemonic | why |\n|---|---|");
        for mnemonic in implemented() {
            let reason = match why_not(mnemonic) {
                Some(reason) => reason,
                None if self.compared.contains_key(&mnemonic) => continue,
                None if settings.len() < SETTINGS.len() => "not in these settings",
                None => "not generated yet, or chance did not make it",
            };
            println!("| {} | {reason} |", name_of(mnemonic));
        }
        println!(
            "\n## Left to the CPU by the manual\n\n| mnemonics | when | not compared | manual |\n|---|---|---|---|"
        );
        for rule in undefined::RULES {
            let names: Vec<String> =
                rule.mnemonics.iter().map(|name| format!("{name:?}").to_lowercase()).collect();
            println!("| {} | {} | {} | {} |", names.join(", "), rule.when, rule.what, rule.manual);
        }
        println!(
            "\n## Tested from the manual instead\n\n| what {referee} does | manual | test |\n|---|---|---|"
        );
        for lack in LACKS.iter().filter(|lack| lack.on.contains(&referee)) {
            println!("| {} | {} | {} |", lack.what, lack.manual, lack.test);
        }
        println!();
    }
}

fn name_of(mnemonic: Mnemonic) -> String {
    format!("{mnemonic:?}").to_lowercase()
}

/// Every mnemonic that the software machine executes.
fn implemented() -> BTreeSet<Mnemonic> {
    Code::values().filter(|code| vmexit_soft::executes(*code)).map(Code::mnemonic).collect()
}
