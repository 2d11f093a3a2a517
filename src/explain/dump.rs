//! A state that somebody has written down, as JSON: `cargo vmexit explain FILE`.
//! The fields are those of the trace's record `entry`; what is not there counts as
//! after reset, and is named.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::explain::EntryState;
use crate::kvm::{kvm_regs, kvm_sregs};
use crate::mode::{enter_real, rflags};
use crate::segment::idle_task;
use crate::trace::record::{Hex, Registers, SystemRegisters};

/// A state, and what was missing of it.
pub struct Dump {
    pub state: EntryState,
    /// The fields that were not there, each with its path: `system.cs.base`.
    pub missing: Vec<String>,
    /// The fields that nobody here knows.
    pub unknown: Vec<String>,
}

/// Numbers beside `registers` and `system`, with where they go. All may be left out in silence.
type Extra = (&'static str, fn(&mut EntryState, u64));

const EXTRAS: &[Extra] = &[
    ("linear_bits", |state, value| state.linear_bits = value.clamp(32, 63) as u32),
    ("physical_bits", |state, value| state.physical_bits = value.clamp(32, 52) as u32),
    ("dr6", |state, value| state.dr6 = value),
    ("dr7", |state, value| state.dr7 = value),
    ("debugctl", |state, value| state.debug_control = value),
    ("sysenter_esp", |state, value| state.sysenter_esp = value),
    ("sysenter_eip", |state, value| state.sysenter_eip = value),
    ("pat", |state, value| state.pat = value),
    ("bndcfgs", |state, value| state.bounds = value),
    ("s_cet", |state, value| state.shadow_stack_control = value),
    ("ssp", |state, value| state.shadow_stack = value),
    ("ssp_table", |state, value| state.shadow_stack_table = value),
    ("activity", |state, value| state.activity = value as u32),
    ("interruptibility", |state, value| state.interruptibility = value as u32),
    ("pending_debug", |state, value| state.pending_debug = value),
    ("injects", |state, value| state.injects = Some(value as u8)),
    ("pdpte0", |state, value| state.pointers[0] = value),
    ("pdpte1", |state, value| state.pointers[1] = value),
    ("pdpte2", |state, value| state.pointers[2] = value),
    ("pdpte3", |state, value| state.pointers[3] = value),
];

impl Dump {
    /// Reads a state from an object with `registers` and `system`; `None` where it has neither.
    ///
    /// # Errors
    /// A sentence that names the field whose value cannot be one.
    pub fn read(json: &Value) -> Result<Option<Self>, String> {
        let Value::Object(object) = json else { return Ok(None) };
        let given = |name: &str| object.get(name).filter(|value| !value.is_null());
        if given("registers").is_none() && given("system").is_none() {
            return Ok(None);
        }
        let (mut missing, mut unknown) = (Vec::new(), Vec::new());
        let (regs, sregs) = after_reset();
        let mut part = |name: &str, base: Value| -> Value {
            let mut whole = base;
            match given(name) {
                None => missing.push(name.to_owned()),
                Some(given) => overlay(&mut whole, given, name, &mut missing, &mut unknown),
            }
            whole
        };
        let registers = part("registers", plain(&Registers::from(&regs)));
        let system = part("system", plain(&SystemRegisters::from(&sregs)));
        let registers: Registers = parsed("registers", registers)?;
        let system: SystemRegisters = parsed("system", system)?;
        let mut state = EntryState::new(&kvm_regs::from(&registers), &kvm_sregs::from(&system));
        for (name, set) in EXTRAS {
            if let Some(value) = given(name) {
                set(&mut state, number(name, value)?);
            }
        }
        Ok(Some(Self { state, missing, unknown }))
    }
}

/// Real mode, as `enter_real` leaves it.
fn after_reset() -> (kvm_regs, kvm_sregs) {
    let mut sregs = kvm_sregs { tr: idle_task(), ..kvm_sregs::default() };
    enter_real(&mut sregs);
    sregs.ldt.unusable = 1;
    (kvm_regs { rflags: rflags::FIXED, ..kvm_regs::default() }, sregs)
}

fn plain(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("plain data")
}

fn parsed<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{name}: {error}"))
}

/// A number, or a string in hexadecimal.
fn number(name: &str, value: &Value) -> Result<u64, String> {
    if let Some(number) = value.as_u64() {
        return Ok(number);
    }
    parsed::<Hex>(name, value.clone()).map(|hex| hex.0)
}

/// Puts `given` over `base`, whose fields are all there are.
fn overlay(
    base: &mut Value,
    given: &Value,
    path: &str,
    missing: &mut Vec<String>,
    unknown: &mut Vec<String>,
) {
    let (Value::Object(fields), Value::Object(given)) = (&mut *base, given) else {
        // Numbers may be written without quotes, where JSON can hold them.
        *base = match (&*base, given.as_u64()) {
            (Value::String(_), Some(number)) => Value::String(format!("{number:#x}")),
            _ => given.clone(),
        };
        return;
    };
    unknown
        .extend(given.keys().filter(|name| !fields.contains_key(*name)).map(|name| format!("{path}.{name}")));
    for (name, field) in fields.iter_mut() {
        let path = format!("{path}.{name}");
        match lookup(given, name) {
            None => missing.push(path),
            Some(value) => overlay(field, value, &path, missing, unknown),
        }
    }
}

fn lookup<'a>(given: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    given.get(name).filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(json: &Value) -> Dump {
        Dump::read(json).expect("values that can be").expect("a state")
    }

    #[test]
    fn what_is_missing_counts_as_after_reset_and_is_named() {
        let dump =
            read(&json!({ "system": { "cr0": "0x80000001", "cs": { "type": 10 } }, "dr7": "0x100000000" }));
        assert_eq!((dump.state.sregs.cr0, dump.state.sregs.cs.type_), (0x8000_0001, 10));
        assert_eq!((dump.state.dr7, dump.state.regs.rflags), (1 << 32, 2));
        for name in ["registers", "system.cr3", "system.cs.base", "system.tr"] {
            assert!(dump.missing.iter().any(|missing| missing == name), "{name}: {:?}", dump.missing);
        }
        assert!(!dump.missing.iter().any(|missing| missing.starts_with("system.tr.")));
    }

    #[test]
    fn a_state_comes_back_from_json_as_it_went() {
        let (mut regs, mut sregs) = after_reset();
        (regs.r15, regs.rip, sregs.cr3, sregs.gdt.limit) = (15, 0xfff0, 0x5000, 0x17);
        let json = json!({ "registers": plain(&Registers::from(&regs)), "system": plain(&SystemRegisters::from(&sregs)) });
        let dump = read(&json);
        assert_eq!((dump.state.regs, dump.state.sregs), (regs, sregs));
        assert!(dump.missing.is_empty() && dump.unknown.is_empty());
    }

    #[test]
    fn numbers_may_be_plain_and_what_is_no_number_is_named() {
        assert_eq!(read(&json!({ "registers": { "rip": 4096 } })).state.regs.rip, 0x1000);
        for bad in [
            json!({ "registers": { "rip": "far" } }),
            json!({ "system": { "cs": { "dpl": 300 } } }),
            json!({ "system": { "cs": 7 } }),
            json!({ "system": {}, "dr7": [] }),
        ] {
            let error = Dump::read(&bad).err().expect("no number");
            assert!(
                error.starts_with("registers: ")
                    || error.starts_with("system: ")
                    || error.starts_with("dr7: "),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_state_is_none_and_a_field_that_nobody_knows_is_named() {
        for other in [json!(3), json!([]), json!({ "type": "end" }), json!({ "system": null })] {
            assert!(Dump::read(&other).expect("no error").is_none());
        }
        assert_eq!(read(&json!({ "system": { "cr9": "0x1" } })).unknown, ["system.cr9"]);
    }
}
