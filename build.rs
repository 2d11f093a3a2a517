//! Builds every `guest.s`, of a chapter or an example, into an ELF image with nothing
//! but rustc, and the programs for ring 3 that lie in a chapter's folder `user/`.
//!
//! For `chapters/05-protected-mode/guest.s` it leaves in `OUT_DIR`:
//!
//! ```text
//! ch05.s    the source, with a symbol at each .code16/.code32/.code64
//! ch05.elf  the image, with symbols
//! ch05.rs   what the binary includes: the image's bytes, or a compile_error!
//! ch05.key  what the image was made from; unchanged means nothing to do
//! ```
//!
//! and for `chapters/10-system-calls/user/hello.s` the same, as `user-hello`. A program
//! may be in Rust, too: a file `user/primes.rs`, with its modules in folders beside it.
//! Chapter 11's guest is a package of its own, which cargo builds: `kernel.rs`.
//!
//! A guest that does not assemble stops its own binary and nothing else, so
//! this script fails only where the file system does.

use std::env;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const BARE_METAL: &str = "x86_64-unknown-none";
const LINUX: &str = "x86_64-unknown-linux-gnu";
/// Where a guest is loaded, and where a program for ring 3.
const GUEST_SCRIPT: &str = "chapters/guest.ld";
const USER_SCRIPT: &str = "chapters/user.ld";
/// The guest that is a package.
const KERNEL: &str = "chapters/11-a-kernel/kernel";

fn main() -> io::Result<()> {
    // The real device exists on x86-64 Linux alone; `cfg(host_kvm)` says so in one word.
    println!("cargo::rustc-check-cfg=cfg(host_kvm)");
    if variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        println!("cargo::rustc-cfg=host_kvm");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml"); // a new chapter adds a [[bin]] there
    println!("cargo::rerun-if-changed={GUEST_SCRIPT}");
    println!("cargo::rerun-if-changed={USER_SCRIPT}");

    let out = PathBuf::from(variable("OUT_DIR"));
    let compiler = Compiler::find();
    let kernel = compiler.start_kernel(&out);
    let mut programs = Vec::new();
    for entry in fs::read_dir("chapters")?.chain(fs::read_dir("examples")?) {
        let folder = entry?.path();
        let source = folder.join("guest.s");
        // Chapter 01 gives its guest as bytes; where main.rs asks for a guest, the file must be there.
        let main = fs::read_to_string(folder.join("main.rs")).unwrap_or_default();
        if source.is_file() || main.contains("guest!()") {
            println!("cargo::rerun-if-changed={}", source.display());
            build_image(&binary_name(&source), &source, GUEST_SCRIPT, &out, &compiler)?;
        }
        let user = folder.join("user");
        if user.is_dir() {
            println!("cargo::rerun-if-changed={}", user.display()); // a new program adds a file
        }
        for entry in fs::read_dir(user).into_iter().flatten() {
            let source = entry?.path();
            if source.extension().is_some_and(|extension| extension == "s") {
                println!("cargo::rerun-if-changed={}", source.display());
                build_image(&program_name(&source), &source, USER_SCRIPT, &out, &compiler)?;
                programs.push(program_name(&source));
            } else if source.extension().is_some_and(|extension| extension == "rs") {
                build_program(&source, &out, &compiler)?;
                programs.push(program_name(&source));
            }
        }
    }
    programs.sort();
    write_if_new(&out.join("programs.rs"), &programs_include(&programs))?;
    write_if_new(&out.join("kernel.rs"), &kernel_include(kernel))
}

/// A table of all programs.
fn programs_include(programs: &[String]) -> String {
    let name = |program: &str| program.strip_prefix("user-").unwrap_or(program).to_owned();
    let row = |program: &String| format!("({:?}, include!(\"{program}.rs\")),\n", name(program));
    format!("&[\n{}]", programs.iter().map(row).collect::<String>())
}

/// Writes a file, but not again: cargo looks at its time.
fn write_if_new(file: &Path, text: &str) -> io::Result<()> {
    if fs::read(file).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    fs::write(file, text)
}

/// A variable that cargo sets for every build script.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// Makes `NAME.rs` in `out`, and all that it includes.
fn build_image(name: &str, source: &Path, script: &str, out: &Path, compiler: &Compiler) -> io::Result<()> {
    let file = |extension: &str| out.join(format!("{name}.{extension}"));
    let shown = source.display().to_string().replace('\\', "/");
    let text = match fs::read(source) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{shown}: this file cannot be read: {error}");
            let _ = fs::remove_file(file("key"));
            return fs::write(file("rs"), format!("compile_error!({message:?})"));
        }
    };
    let layout = fs::read(script)?;
    let key = [&text[..], &layout[..], compiler.key.as_bytes()].join(&b'\0');
    if fs::read(file("key")).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let result = match String::from_utf8(text) {
        Ok(text) => compiler.assemble(name, &text, script, out, &shown)?,
        Err(_) => Err(format!("{shown}: this is not UTF-8 text")),
    };
    let include = match result {
        Ok(()) => format!("include_bytes!(\"{name}.elf\").as_slice()"),
        Err(message) => format!("compile_error!({message:?})"),
    };
    fs::write(file("rs"), include)?;
    fs::write(file("key"), key)
}

/// `chapters/05-protected-mode/guest.s` belongs to the binary `ch05`, `examples/mips/guest.s` to `mips`.
fn binary_name(source: &Path) -> String {
    let folder = source.parent().and_then(Path::file_name).unwrap_or_default();
    let folder = folder.to_string_lossy();
    let number = folder.split('-').next().unwrap_or_default();
    if number.parse::<u8>().is_ok() { format!("ch{number}") } else { folder.into_owned() }
}

/// `chapters/10-system-calls/user/hello.s` is `user-hello`.
fn program_name(source: &Path) -> String {
    format!("user-{}", source.file_stem().unwrap_or_default().to_string_lossy())
}

/// Makes `user-NAME.rs` from a program in Rust. What it includes is a file of its own, so it is
/// built anew whenever this script runs: a tenth of a second.
fn build_program(source: &Path, out: &Path, compiler: &Compiler) -> io::Result<()> {
    let name = program_name(source);
    let result = compiler.compile_program(source, &out.join(format!("{name}.elf")))?;
    let include = match result {
        Ok(()) => format!("include_bytes!(\"{name}.elf\").as_slice()"),
        Err(message) => format!("compile_error!({message:?})"),
    };
    write_if_new(&out.join(format!("{name}.rs")), &include)
}

/// What the chapter's binary includes for its kernel: the image, or why there is none.
fn kernel_include(kernel: Result<(Child, PathBuf), String>) -> String {
    let built = kernel.and_then(|(cargo, image)| {
        let done = cargo.wait_with_output().map_err(|error| format!("{KERNEL}: {error}"))?;
        if done.status.success() {
            return Ok(image);
        }
        Err(cargo_errors(&String::from_utf8_lossy(&done.stderr)))
    });
    match built {
        Ok(image) => format!("include_bytes!({image:?}).as_slice()"),
        Err(message) => format!("compile_error!({message:?})"),
    }
}

/// What cargo says with `--message-format short`, each error with its file's path from here.
fn cargo_errors(stderr: &str) -> String {
    let is_error = |line: &&str| line.contains(": error");
    let errors: Vec<String> =
        stderr.lines().filter(is_error).map(|line| format!("{KERNEL}/{line}")).collect();
    if errors.is_empty() {
        format!("{KERNEL}: cargo could not build the kernel:\n{stderr}")
    } else {
        errors.join("\n")
    }
}

/// rustc, and the target through which it can make a bare-metal image here.
struct Compiler {
    rustc: String,
    target: Option<&'static str>,
    /// Changes when an image made by another compiler would.
    key: String,
}

impl Compiler {
    fn find() -> Self {
        let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let installed = |target: &str| {
            let folder = output(&rustc, &["--print", "target-libdir", "--target", target]);
            let libraries = fs::read_dir(folder.trim()).into_iter().flatten().flatten();
            libraries.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
        };
        let target = [BARE_METAL, LINUX].into_iter().find(|target| installed(target));
        let key = format!("{} {target:?}", output(&rustc, &["--version", "--verbose"]));
        Self { rustc, target, key }
    }

    /// What to say where no guest can be built.
    fn no_target(&self, shown: &str) -> String {
        format!(
            "{shown}: guests are built for {BARE_METAL}, which this Rust toolchain lacks; add it with: rustup target add {BARE_METAL}"
        )
    }

    /// Starts cargo on the kernel, and says where the image will be. It has its own target folder,
    /// one for all profiles and targets of the workbook: the kernel is the same for all of them.
    fn start_kernel(&self, out: &Path) -> Result<(Child, PathBuf), String> {
        for file in ["src", "Cargo.toml", "Cargo.lock", "kernel.ld", ".cargo/config.toml"] {
            println!("cargo::rerun-if-changed={KERNEL}/{file}");
        }
        println!("cargo::rerun-if-changed=src/boot/info.rs");
        println!("cargo::rerun-if-changed=src/abi.rs");
        let target = self.target.ok_or_else(|| self.no_target(KERNEL))?;
        // Cargo marks the folder that holds everything that it builds.
        let marked = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
        let folder = marked.unwrap_or(out).join("kernel");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(KERNEL).args(["build", "--quiet", "--locked", "--message-format", "short"]);
        cargo.args(["--target", target]).arg("--target-dir").arg(&folder);
        // How the workbook itself is built is no matter of the kernel's.
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_INCREMENTAL",
        ] {
            cargo.env_remove(name);
        }
        let child = cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.map_err(|error| format!("{KERNEL}: cargo cannot be run: {error}"))?;
        Ok((child, folder.join(target).join("debug/kernel")))
    }

    /// Compiles and links a program in Rust; the inner error is what the reader sees.
    fn compile_program(&self, source: &Path, image: &Path) -> io::Result<Result<(), String>> {
        println!("cargo::rerun-if-changed={}", source.display());
        let Some(target) = self.target else {
            return Ok(Err(self.no_target(&source.display().to_string())));
        };
        let mut rustc = self.linking(target, USER_SCRIPT)?;
        rustc.args([
            "--crate-name",
            "program",
            "-C",
            "opt-level=s",
            "-C",
            "strip=debuginfo",
            "--error-format",
            "short",
        ]);
        let done = rustc.arg("-o").arg(image).arg(source).output()?;
        if done.status.success() {
            return Ok(Ok(()));
        }
        let stderr = String::from_utf8_lossy(&done.stderr);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.contains(": error")).collect();
        Ok(Err(if errors.is_empty() { stderr.into_owned() } else { errors.join("\n") }))
    }

    /// rustc, about to link a program for no operating system with this script.
    fn linking(&self, target: &str, script: &str) -> io::Result<Command> {
        let mut rustc = Command::new(&self.rustc);
        rustc.args(["--crate-type", "bin", "--edition", "2024", "--target", target]);
        rustc.args(["-C", "panic=abort", "-C", "relocation-model=static", "-C", "debuginfo=0"]);
        if target == LINUX {
            rustc.args(["-C", "linker=rust-lld", "-C", "linker-flavor=ld.lld", "-C", "link-arg=-nostdlib"]);
        }
        let script = fs::canonicalize(script)?;
        rustc.arg("-C").arg(format!("link-arg=-T{}", script.display()));
        Ok(rustc)
    }

    /// Assembles and links `text`; the inner error is what the reader sees.
    fn assemble(
        &self,
        name: &str,
        text: &str,
        script: &str,
        out: &Path,
        shown: &str,
    ) -> io::Result<Result<(), String>> {
        let Some(target) = self.target else {
            return Ok(Err(self.no_target(shown)));
        };
        let assembly = out.join(format!("{name}.s"));
        let wrapper = out.join(format!("{name}-wrapper.rs"));
        fs::write(&assembly, mark_code_size(text))?;
        fs::write(&wrapper, wrapper_source(&assembly))?;

        let mut rustc = self.linking(target, script)?;
        rustc.args(["--crate-name", "guest"]);
        let done = rustc.arg("-o").arg(out.join(format!("{name}.elf"))).arg(&wrapper).output()?;
        if done.status.success() {
            return Ok(Ok(()));
        }
        Ok(Err(reader_errors(&String::from_utf8_lossy(&done.stderr), shown)))
    }
}

/// What `program` prints, or nothing where it fails.
fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output();
    done.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default()
}

fn wrapper_source(assembly: &Path) -> String {
    format!(
        "#![no_std]\n#![no_main]\n\
         core::arch::global_asm!(include_str!({assembly:?}), options(raw));\n\
         #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! {{ loop {{}} }}\n"
    )
}

/// Puts a symbol `$code16.N` (32, 64) behind each `.code16` (32, 64), on the
/// same line so that line numbers hold: the listing then knows where the size
/// of the code changes, which x86 ELF files have no other way to say.
fn mark_code_size(text: &str) -> String {
    let mut marked = String::with_capacity(text.len() + 256);
    for (number, line) in text.lines().enumerate() {
        let code = line.split('#').next().unwrap_or_default();
        let directive = [".code16", ".code32", ".code64"].into_iter().find_map(|directive| {
            let start = code.find(directive)?;
            Some((start + directive.len(), &directive[1..]))
        });
        match directive {
            Some((end, size)) => {
                writeln!(marked, "{}; \"${size}.{number}\":{}", &line[..end], &line[end..])
                    .expect("a String takes everything");
            }
            None => {
                marked.push_str(line);
                marked.push('\n');
            }
        }
    }
    marked
}

/// rustc's report in the reader's terms: `chapters/05-…/guest.s:LINE: message`.
///
/// The assembler counts one line more than the file has, because rustc puts a
/// line in front.
fn reader_errors(stderr: &str, shown: &str) -> String {
    let mut errors = String::new();
    let mut message = "";
    for line in stderr.lines() {
        let words = line.trim_start();
        if let Some(text) = words.strip_prefix("error: ") {
            message = text;
        } else if let Some(at) = words.strip_prefix("--> <inline asm>:") {
            let number = at.split(':').next().and_then(|number| number.parse::<usize>().ok());
            let number = number.unwrap_or(1).saturating_sub(1);
            writeln!(errors, "{shown}:{number}: {message}").expect("a String takes everything");
        } else if let Some((_, text)) = words.split_once("rust-lld: error: ") {
            // ld.lld prints the script's own ASSERT messages and undefined symbols.
            let text = text.split_once(".ld:").map_or(text, |(_, rest)| rest);
            writeln!(errors, "{shown}: {text}").expect("a String takes everything");
        }
    }
    if errors.is_empty() {
        return format!("{shown}: rustc could not build this guest:\n{stderr}");
    }
    errors.trim_end().to_owned()
}

/// `tests/guests.rs` compiles this file as a module, and so runs these.
#[cfg(test)]
mod tests {
    use super::*;

    /// Assembles `text` in a folder of the test's own.
    fn assemble(test: &str, text: &str) -> (PathBuf, Result<(), String>) {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
        fs::create_dir_all(&out).expect("cargo's folder for tests can be written");
        let result = Compiler::find().assemble("ch99", text, GUEST_SCRIPT, &out, "chapters/99-test/guest.s");
        (out, result.expect("files can be written and rustc can be run"))
    }

    fn error(test: &str, text: &str) -> String {
        assemble(test, text).1.expect_err("this guest is broken")
    }

    #[test]
    fn a_typo_is_reported_at_its_line_of_the_guest() {
        let text = "# a { brace in a comment\n.globl _start\n.code16\n_start: mov ax, 1\n        hlt\n        huh ax\n";
        let message = error("typo", text);
        assert_eq!(message, "chapters/99-test/guest.s:6: invalid instruction mnemonic 'huh'");
    }

    #[test]
    fn every_typo_is_reported() {
        let message = error("typos", ".globl _start\n_start: huh ax\n        out dx\n");
        assert!(message.contains("guest.s:2: invalid instruction mnemonic 'huh'"), "{message}");
        assert!(message.contains("guest.s:3: "), "{message}");
    }

    #[test]
    fn a_name_that_is_nowhere_is_reported_by_name() {
        let message = error("undefined", ".globl _start\n.code32\n_start: jmp nowhere\n");
        assert!(message.contains("undefined symbol: nowhere"), "{message}");
    }

    #[test]
    fn a_guest_without_a_start_and_an_empty_one_are_errors() {
        let message = error("startless", ".code16\nstart: hlt\n");
        assert!(message.contains("no symbol _start"), "{message}");
        let message = error("empty", ".globl _start\n_start:\n");
        assert!(message.contains("no code in .text"), "{message}");
    }

    #[test]
    fn an_image_that_did_not_change_is_not_built_again() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("98-twice");
        fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
        let (source, image) = (folder.join("guest.s"), folder.join("ch98.elf"));
        let compiler = Compiler::find();
        let build = |text: &str| {
            fs::write(&source, text).expect("the folder can be written");
            let built = build_image("ch98", &source, GUEST_SCRIPT, &folder, &compiler);
            built.expect("rustc can be run");
            fs::metadata(&image).and_then(|file| file.modified()).expect("an image")
        };
        let first = build(".globl _start\n.code16\n_start: hlt\n");
        assert_eq!(build(".globl _start\n.code16\n_start: hlt\n"), first);
        assert_ne!(build(".globl _start\n.code16\n_start: cli; hlt\n"), first);
    }

    #[test]
    fn a_guest_that_is_no_text_stops_only_its_binary() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("97-bytes");
        fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
        fs::write(folder.join("guest.s"), [0xff, 0xfe, 0x00]).expect("the folder can be written");
        let source = folder.join("guest.s");
        let built = build_image("ch97", &source, GUEST_SCRIPT, &folder, &Compiler::find());
        built.expect("no error of the script's");
        let include = fs::read_to_string(folder.join("ch97.rs")).expect("something to include");
        assert!(include.starts_with("compile_error!(") && include.contains("not UTF-8"), "{include}");
    }

    #[test]
    fn a_program_that_does_not_assemble_stops_only_those_that_include_it() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("96-program");
        fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
        let source = folder.join("wrong.s");
        fs::write(&source, ".globl _start\n.code64\n_start: sysall\n").expect("the folder can be written");
        let name = program_name(&source);
        let built = build_image(&name, &source, USER_SCRIPT, &folder, &Compiler::find());
        built.expect("no error of the script's");
        let include = fs::read_to_string(folder.join("user-wrong.rs")).expect("something to include");
        assert!(include.starts_with("compile_error!("), "{include}");
        assert!(include.contains("wrong.s:3: invalid instruction mnemonic 'sysall'"), "{include}");
    }

    #[test]
    fn a_program_in_rust_that_does_not_compile_is_reported_at_its_line() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("95-program");
        fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
        let source = folder.join("wrong.rs");
        fs::write(&source, "#![no_std]\n#![no_main]\nconst WRONG: u8 = \"\";\n")
            .expect("the folder can be written");
        let result = Compiler::find().compile_program(&source, &folder.join("wrong.elf"));
        let message = result.expect("rustc can be run").expect_err("this program is broken");
        assert!(
            message.contains("wrong.rs:3:19: error[E0308]") && !message.contains("aborting"),
            "{message}"
        );
    }

    #[test]
    fn what_is_wrong_with_the_kernel_is_reported_with_its_path_from_here() {
        let stderr =
            "src/boot.rs:3:5: error[E0425]: cannot find value `x`\nerror: could not compile `kernel`\n";
        let wanted = format!("{KERNEL}/src/boot.rs:3:5: error[E0425]: cannot find value `x`");
        assert_eq!(cargo_errors(stderr), wanted);
        let offline = "error: failed to download `elf v0.8.0`\n";
        assert!(
            cargo_errors(offline).contains("cargo could not build the kernel:\nerror: failed to download")
        );
    }
}
