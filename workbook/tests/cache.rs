//! The cache's states, each as a reader can meet it. No lab is needed.
#![cfg(unix)]

use std::fs;
use std::path::Path;

use vmexit_workbook::failure::Failure;
use vmexit_workbook::lab::cache::{self, Lab, Stamp, Unusable};

/// Fills a folder as setup does and makes it the lab.
fn install(folder: &Path, kernel: &[u8]) {
    let prepared = folder.join("setup-x").join("lab");
    fs::create_dir_all(prepared.join("modules")).expect("a folder");
    fs::write(prepared.join("vmlinuz"), kernel).expect("a file");
    fs::write(prepared.join("modules/kvm.ko"), b"module").expect("a file");
    cache::install(folder, &prepared, Stamp::default()).expect("a lab");
}

fn unusable(folder: &Path) -> Unusable {
    Lab::open(folder).expect_err("an unusable lab")
}

#[test]
fn what_setup_installs_can_be_opened_and_is_replaced_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), b"first");
    install(folder.path(), b"second");
    let lab = Lab::open(folder.path()).expect("a lab");
    assert_eq!(fs::read(lab.kernel()).expect("a kernel"), b"second");
    assert_eq!(lab.stamp.files["modules/kvm.ko"], 6);
}

#[test]
fn a_setup_that_was_cut_short_is_no_lab_and_the_next_one_clears_it() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("setup-abc/lab")).expect("a folder");
    fs::write(folder.path().join("setup-abc/linux.deb"), b"half").expect("a file");
    assert_eq!(unusable(folder.path()), Unusable::Missing);
    assert_eq!(cache::remove_unfinished(folder.path()).expect("a cleared folder"), 1);
    install(folder.path(), b"kernel");
    assert!(Lab::open(folder.path()).is_ok());
}

#[test]
fn a_file_that_is_short_or_gone_is_noticed_and_setup_mends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), b"kernel");
    fs::write(folder.path().join("lab/vmlinuz"), b"ker").expect("a file");
    assert_eq!(unusable(folder.path()), Unusable::Damaged("vmlinuz has 3 bytes, not 6".to_owned()));
    fs::remove_file(folder.path().join("lab/vmlinuz")).expect("a file to remove");
    assert_eq!(unusable(folder.path()), Unusable::Damaged("vmlinuz is gone".to_owned()));
    install(folder.path(), b"kernel");
    assert!(Lab::open(folder.path()).is_ok());
}

#[test]
fn another_versions_cache_is_told_by_its_stamp_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), b"kernel");
    let stamp = folder.path().join("lab/stamp.json");
    fs::write(&stamp, r#"{"version": 0, "something": "else"}"#).expect("a file");
    assert_eq!(unusable(folder.path()), Unusable::OtherVersion(0));
    fs::write(&stamp, "{").expect("a file");
    assert!(matches!(unusable(folder.path()), Unusable::Damaged(_)));
}

#[test]
fn every_state_tells_the_reader_to_run_setup() {
    for state in [Unusable::Missing, Unusable::OtherVersion(7), Unusable::Damaged("it is".to_owned())] {
        let failure = Failure::from(state);
        assert!(failure.sentence.ends_with("run `cargo vmexit lab setup`"), "{failure}");
    }
}
