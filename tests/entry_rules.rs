//! The book's table of the rules of VM entry is the library's own.

use vmexit::explain::{Verdict, rules};

#[test]
fn the_rules_are_listed_with_what_each_vendor_does_and_where_it_says_so() {
    let mut table = "| rule | Intel | AMD | section |\n|---|---|---|---|\n".to_owned();
    for rule in rules() {
        let (intel, of_intel) = told(rule.intel);
        let (amd, of_amd) = told(rule.amd);
        let section = of_intel.map(|section| format!("SDM Vol. 3C, \"{section}\""));
        let section = section.or(of_amd.map(|section| format!("APM Vol. 2, \"{section}\"")));
        let section = section.expect("a rule that somebody enforces");
        table.push_str(&format!("| `{}` | {intel} | {amd} | {section} |\n", rule.name));
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../book/src/tables");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("entry-rules", table));
}

fn told(verdict: Verdict) -> (&'static str, Option<&'static str>) {
    match verdict {
        Verdict::Refuses(section) => ("refuses", Some(section)),
        Verdict::RefusesWithoutUnrestricted(section) => ("refuses without unrestricted guest", Some(section)),
        Verdict::Accepts => ("accepts", None),
    }
}
