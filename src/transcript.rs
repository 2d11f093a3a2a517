//! What a reader sees in the terminal when a chapter ran: the text of a
//! snapshot. The tests, the lab and the book share this one form.

use std::fmt::Write;

/// Lines on stderr that begin with this name the backend that was chosen. They
/// differ from host to host, so a transcript leaves them out.
pub const BACKEND_NOTE: &str = "backend: ";

/// Renders one run of a program as a terminal session:
///
/// ```text
/// $ cargo run --bin ch05 -- --break gdt-limit
/// what the program wrote to stdout
/// what it wrote to stderr, without the line that names the backend
/// [exit code 3]
/// ```
///
/// The last line is there only when `code` is not 0. `command` is what stands
/// after the `$`.
#[must_use]
pub fn render(command: &str, stdout: &str, stderr: &str, code: i32) -> String {
    let mut text = format!("$ {command}\n");
    let errors = stderr.lines().filter(|line| !line.starts_with(BACKEND_NOTE));
    for line in stdout.lines().chain(errors) {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if code != 0 {
        writeln!(text, "[exit code {code}]").expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_leaves_out_the_backend_and_shows_a_failing_code() {
        let text = render("cargo run", "a \nb\n", "backend: kvm\nch01: no\n", 2);
        assert_eq!(text, "$ cargo run\na\nb\nch01: no\n[exit code 2]\n");
    }
}
