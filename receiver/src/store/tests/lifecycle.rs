//! Opening, resuming, finishing, closing, and what is refused on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn receive(store: &Store, transfer: &str, image: &Image, replace: bool) -> Result<PathBuf, StoreError> {
    let intake = store.begin(transfer, &[image.spec()], replace)?;
    let all = block(image, 0, image.kinds.len());
    intake.place(all.digest, &all.decoded())?;
    let path = intake.finish(image.vm)?;
    intake.close_transfer()?;
    Ok(path)
}

#[test]
fn one_block_becomes_an_image_that_only_its_owner_may_read() {
    let root = scratch();
    let store = Store::open(&root.path().join("new/store")).unwrap();
    let image = Image { tail: 100, ..image("a", &[0, 3, 3, 1, 4, 5, 2, 2, 0]) };
    let path = receive(&store, "t", &image, false).unwrap();
    assert_eq!(path, ram(store.root(), "a"));
    assert_eq!(fs::read(&path).unwrap(), image.bytes());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.root().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let left: Vec<_> =
        fs::read_dir(store.root().join(".scatter")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn names_that_are_not_plain_file_names_are_refused() {
    let root = scratch();
    let store = open(root.path());
    let long = "x".repeat(201);
    let bad = [
        "",
        ".",
        "..",
        "...",
        "../a",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".scatter",
        ".a",
        "a\0b",
        "a\nb",
        "-rf",
        " a",
        "a ",
        &long,
    ];
    for name in bad {
        let specs = [image(name, &[0]).spec()];
        assert_err!(store.begin("t", &specs, true), StoreError::BadName { what: "VM", .. });
        assert_err!(store.begin(name, &[], true), StoreError::BadName { what: "transfer", .. });
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only .scatter");
    for name in ["a.ram", "a.ram.part", "ünï", "a b", &"x".repeat(200)] {
        receive(&store, "t", &image(name, &[0, 3]), false).unwrap();
    }
}

#[test]
fn vms_listed_twice_or_of_impossible_size_are_refused() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[0, 3]).spec();
    let same_name = (VmId(4), a.1.clone());
    let same_id = image("b", &[0]).spec();
    assert_err!(store.begin("t", &[a.clone(), same_name], false), StoreError::DuplicateVm { .. });
    assert_err!(store.begin("t", &[a.clone(), same_id], false), StoreError::DuplicateVm { .. });
    for (file_len, page_count) in [(4096, 2), (4097, 1), (0, 1), (u64::MAX, u32::MAX)] {
        let spec = VmSpec { file_len, page_count, ..a.1.clone() };
        assert_err!(store.begin("t", &[(VmId(3), spec)], false), StoreError::BadSpec { .. });
    }
}

#[test]
fn a_second_receiver_is_told_who_has_the_store() {
    let root = scratch();
    let store = open(root.path());
    let pid = std::process::id();
    let message =
        assert_err!(Store::open(root.path()), StoreError::Locked { pid: Some(found), .. } if found == pid);
    assert!(message.contains(&pid.to_string()) && message.contains(root.path().to_str().unwrap()));
    let intake = store.begin("t", &[image("a", &[0]).spec()], false).unwrap();
    drop(store);
    assert_err!(Store::open(root.path()), StoreError::Locked { .. });
    drop(intake);
    Store::open(root.path()).unwrap();
}

#[test]
fn a_transfer_and_a_vm_have_one_intake_at_a_time() {
    let root = scratch();
    let store = open(root.path());
    let (a, mut b) = (image("a", &[0]).spec(), image("b", &[0]).spec());
    let intake = store.begin("t", std::slice::from_ref(&a), false).unwrap();
    assert_err!(store.begin("u", std::slice::from_ref(&a), false), StoreError::Busy { what: "VM", .. });
    assert_err!(store.begin("t", std::slice::from_ref(&b), false), StoreError::Busy { what: "transfer", .. });
    b.0 = VmId(0);
    store.begin("u", &[b], false).unwrap();
    drop(intake);
    store.begin("u", &[a], false).unwrap();
}

#[test]
fn a_foreign_image_is_replaced_only_when_allowed_and_only_at_the_end() {
    let root = scratch();
    let store = open(root.path());
    let old = image("a", &[3, 3]);
    receive(&store, "old", &old, false).unwrap();
    let new = image("a", &[4, 0, 5]);
    let message = assert_err!(receive(&store, "new", &new, false), StoreError::ImageExists { .. });
    assert!(message.contains("a.ram"), "{message}");
    let intake = store.begin("new", &[new.spec()], true).unwrap();
    let all = block(&new, 0, 3);
    intake.place(all.digest, &all.decoded()).unwrap();
    assert_eq!(fs::read(ram(root.path(), "a")).unwrap(), old.bytes());
    intake.finish(new.vm).unwrap();
    assert_eq!(fs::read(ram(root.path(), "a")).unwrap(), new.bytes());
}

#[test]
fn an_image_that_appears_meanwhile_is_not_overwritten() {
    let root = scratch();
    let store = open(root.path());
    let new = image("a", &[4]);
    let intake = store.begin("new", &[new.spec()], false).unwrap();
    let all = block(&new, 0, 1);
    intake.place(all.digest, &all.decoded()).unwrap();
    fs::write(ram(root.path(), "a"), "mine").unwrap();
    assert_err!(intake.finish(new.vm), StoreError::ImageExists { .. });
    assert_eq!(fs::read(ram(root.path(), "a")).unwrap(), b"mine");
    fs::remove_file(ram(root.path(), "a")).unwrap();
    intake.finish(new.vm).unwrap();
}

#[test]
fn links_and_directories_in_the_way_are_not_followed() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[4]);
    let victim = root.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, part(root.path(), "a")).unwrap();
    assert_err!(receive(&store, "t", &a, true), StoreError::NotAFile { .. });
    fs::remove_file(part(root.path(), "a")).unwrap();
    fs::create_dir(ram(root.path(), "a")).unwrap();
    assert_err!(receive(&store, "t", &a, true), StoreError::NotAFile { .. });
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
}

#[test]
fn consecutive_pages_take_one_system_call() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[3, 4, 5, 6, 7, 8, 0, 4, 3]);
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    // Consecutive in the file, in the block's order and not.
    let run = |pfn, content, count| ContentRun { vm: a.vm, pfn: Pfn(pfn), content, count };
    let mut all = block(&a, 6, 7);
    all.contents = [5, 6, 3, 4, 7, 8].map(page).concat();
    all.runs = vec![run(7, 3, 1), run(2, 0, 2), run(0, 2, 2), run(8, 2, 1), run(4, 4, 2)];
    let all = all.sealed();
    let stats = intake.place(all.digest, &all.decoded()).unwrap();
    assert_eq!(stats.pages, 9);
    // Both stretches are gathered from several places of the block.
    assert_eq!(stats.bytes, 8 * 4096);
    assert_eq!(fs::read(part(root.path(), "a")).unwrap(), a.bytes());
    assert_eq!(stats.writes, 2);
}

/// The journal as a backup or a broken disk may bring it back: with a kill undone.

#[test]
fn blocks_that_do_not_fit_are_refused_before_anything_is_written() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[3, 4, 0]);
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    let content = |pfn, content, count| Block {
        runs: vec![ContentRun { vm: a.vm, pfn: Pfn(pfn), content, count }],
        contents: page(3).repeat(2),
        ..Block::default()
    };
    let uniform = |first, count| {
        let run = UniformRun { first: Pfn(first), count, word: 7 };
        Block { uniform: vec![UniformPlacement { vm: a.vm, run }], ..Block::default() }
    };
    for block in [content(2, 0, 2), content(u32::MAX, 0, 2), uniform(3, 1), uniform(u32::MAX, u32::MAX)] {
        let block = block.sealed();
        assert_err!(intake.place(block.digest, &block.decoded()), StoreError::PageOutOfRange { .. });
    }
    let mut twice = content(0, 0, 2);
    twice.uniform = uniform(1, 1).uniform;
    for block in [content(0, 1, 2), content(0, u32::MAX, 1), twice] {
        let block = block.sealed();
        assert_err!(intake.place(block.digest, &block.decoded()), StoreError::BadBlock { .. });
    }
    assert_eq!(fs::read(part(root.path(), "a")).unwrap(), [0; 3 * 4096]);
    assert_eq!(intake.remaining_pages(a.vm), 3);
    assert_err!(intake.finish(VmId(9)), StoreError::UnknownVm { vm: VmId(9) });
    assert!(!intake.is_complete(VmId(9)));
}

#[test]
fn an_empty_image_is_complete_at_once() {
    let root = scratch();
    let store = open(root.path());
    let empty = VmSpec { name: "empty".to_owned(), file_len: 0, page_count: 0, content_pages: 0 };
    let intake = store.begin("t", &[(VmId(0), empty)], false).unwrap();
    assert!(intake.is_complete(VmId(0)));
    assert_eq!(fs::metadata(intake.finish(VmId(0)).unwrap()).unwrap().len(), 0);
}

#[test]
fn a_store_that_cannot_be_written_says_so() {
    let root = scratch();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let message = assert_err!(Store::open(&file), StoreError::Io { .. });
    assert!(message.contains("file"), "{message}");
    let message = assert_err!(
        Store::open(Path::new("/proc/nowhere")),
        StoreError::Io { .. } | StoreError::Permission { .. }
    );
    assert!(message.contains("/proc/nowhere"), "{message}");
}
