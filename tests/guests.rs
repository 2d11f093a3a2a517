//! The build script's tests: how a broken guest is reported.

#[allow(dead_code)] // its `main` is cargo's
#[path = "../build.rs"]
mod build;

/// The constants of `src/abi.rs`, which a program in assembly repeats.
#[test]
fn programs_in_assembly_use_the_numbers_of_the_abi() {
    use vmexit::abi;
    let numbers = [
        ("WRITE", abi::WRITE),
        ("EXIT", abi::EXIT),
        ("CALLS", abi::CALLS),
        ("CONSOLE", abi::CONSOLE),
        ("EBADF", abi::EBADF.unsigned_abs()),
        ("ENOSYS", abi::ENOSYS.unsigned_abs()),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/chapters/10-system-calls/user");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the programs").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("a program");
        for line in text.lines().filter_map(|line| line.trim().strip_prefix(".set")) {
            let line = line.split('#').next().unwrap_or_default();
            let (name, value) = line.split_once(',').expect("a name and a value");
            let Some((_, number)) = numbers.iter().find(|(known, _)| *known == name.trim()) else { continue };
            let value = value.trim();
            let parsed = match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => value.parse(),
            };
            assert_eq!(parsed, Ok(*number), "{}: {name}", entry.path().display());
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen} constants were found");
}

#[test]
fn programs_for_ring_3_are_linked_where_the_abi_says() {
    let image = vmexit::guest::Image::elf(vmexit::program!("hello")).expect("an ELF file");
    assert_eq!((image.entry(), image.symbol("_start").ok()), (vmexit::abi::START, Some(vmexit::abi::START)));
}
