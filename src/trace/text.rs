//! The trace as lines for people.
//!
//! ```text
//! exit  reason         carried                    where      instruction
//!    1  KVM_EXIT_IO    out 0x3f8 <- 0x35 '5'      0000:100b  out dx, al
//! ```

use std::io::IsTerminal;

use crate::exit::Exit;
use crate::mode::Mode;

/// Whether to colour: on a terminal, unless NO_COLOR is set.
#[derive(Clone, Copy)]
pub struct Style(bool);

impl Style {
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(std::io::stdout().is_terminal() && !refused)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// What stands above the first exit.
pub fn heading(style: Style) -> String {
    style.dim("exit  reason         carried                    where      instruction")
}

/// An exit; `code` is where it comes from and the instruction there, if known.
pub fn exit(style: Style, number: u64, exit: &Exit, code: Option<&(String, String)>) -> String {
    let (name, carried) = (exit.name(), exit.to_string());
    let (place, instruction) = code.map_or(("", ""), |(place, text)| (place, text));
    // The two columns share their width: a long name takes it from what the exit carried.
    let name_width = name.len().max(13);
    let carried_width = 38usize.saturating_sub(name_width);
    let reason = style.bold(&format!("{name:<name_width$}"));
    let line = format!("{number:>4}  {reason}  {carried:<carried_width$}  {place:<9}  {instruction}");
    line.trim_end().to_owned()
}

/// An instruction, under the exits' columns.
pub fn step(style: Style, place: &str, code: &str) -> String {
    style.dim(&format!("      {:<40}  {place:<9}  {code}", ""))
}

/// From here on the CPU is in this mode and ring.
pub fn mode(style: Style, mode: Mode, ring: u8) -> String {
    style.dim(&format!("      -- {mode}, ring {ring}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_one_line_under_the_heading() {
        let io = Exit::IoOut { port: 0x3f8, size: 1, data: b"5".to_vec() };
        let code = ("0000:100b".to_owned(), "out dx, al".to_owned());
        let line = exit(Style(false), 1, &io, Some(&code));
        assert_eq!(line, "   1  KVM_EXIT_IO    out 0x3f8 <- 0x35 '5'      0000:100b  out dx, al");
        assert_eq!(heading(Style(false)).find("where"), line.find("0000:100b"));
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        let line = exit(Style(true), 2, &Exit::Hlt, None);
        assert_eq!(line, "   2  \x1b[1mKVM_EXIT_HLT \x1b[0m");
        assert_eq!(exit(Style(false), 2, &Exit::Hlt, None), "   2  KVM_EXIT_HLT");
    }
}
