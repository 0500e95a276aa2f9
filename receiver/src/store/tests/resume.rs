//! What an interrupted transfer may rely on when it goes on, and what it must not.

use std::fs;

use super::*;

#[test]
fn an_interrupted_transfer_holds_every_block_that_was_placed() {
    let root = scratch();
    let a = image("a", &[3, 4, 0, 0, 1, 5, 6, 7]);
    let blocks: Vec<_> = (0..4).map(|i| block(&a, 2 * i, 2 * i + 2)).collect();
    {
        let store = open(root.path());
        let intake = store.begin("t", &[a.spec()], false).unwrap();
        for block in &blocks[..3] {
            intake.place(block.digest, &block.decoded()).unwrap();
        }
        assert_eq!(intake.remaining_pages(a.vm), 2);
        assert_err!(intake.finish(a.vm), StoreError::NotComplete { remaining_pages: 2, .. });
        assert_err!(intake.close_transfer(), StoreError::NotComplete { remaining_pages: 2, .. });
    }
    assert!(!ram(root.path(), "a").exists());
    let store = open(root.path());
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    assert_eq!(intake.resume_note(), None);
    let held: Vec<_> = blocks[..3].iter().map(|block| block.digest).collect();
    assert_eq!(intake.held_digests(), held);
    assert_eq!(intake.remaining_pages(a.vm), 8, "held pages count only once they are announced");
    assert!(!intake.confirm_held(&blocks[3].digest));
    assert!(intake.confirm_held(&blocks[0].digest));
    assert!(intake.confirm_held(&blocks[0].digest), "twice is as good as once");
    assert_eq!(intake.held_digests(), held[1..]);
    assert_eq!(intake.remaining_pages(a.vm), 6);
    for block in &blocks[1..] {
        let stats = intake.place(block.digest, &block.decoded()).unwrap();
        assert_eq!(stats.already_held, block.digest != blocks[3].digest);
    }
    let path = intake.finish(a.vm).unwrap();
    assert_eq!(intake.finish(a.vm).unwrap(), path);
    assert_eq!(fs::read(path).unwrap(), a.bytes());
}

#[test]
fn zero_runs_cost_nothing_on_holes_and_really_zero_what_was_written() {
    let root = scratch();
    let store = open(root.path());
    let before = image("a", &[3; 64]);
    let intake = store.begin("t", &[before.spec()], false).unwrap();
    let half = block(&before, 0, 32);
    intake.place(half.digest, &half.decoded()).unwrap();
    drop(intake);
    let after = image("a", &[0; 64]);
    let intake = store.begin("t", &[after.spec()], false).unwrap();
    let zeros = block(&after, 0, 64);
    let stats = intake.place(zeros.digest, &zeros.decoded()).unwrap();
    assert_eq!((stats.pages, stats.zero_pages_free, stats.bytes, stats.writes), (64, 32, 32 * 4096, 1));
    assert_eq!(stats.invalidated, 1);
    assert!(intake.held_digests().is_empty());
    assert!(!intake.confirm_held(&half.digest));
    let again = Block { digest: [9; 32], ..zeros };
    assert_eq!(intake.place(again.digest, &again.decoded()).unwrap().zero_pages_free, 64);
    let path = intake.finish(after.vm).unwrap();
    assert_eq!(fs::read(&path).unwrap(), after.bytes());
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()), 0, "all of it is a hole");
}

#[test]
fn of_two_records_that_claim_a_page_the_later_is_believed() {
    let root = scratch();
    let store = open(root.path());
    let (before, after) = (image("a", &[3, 4]), image("a", &[3, 5]));
    let (first, second) = (block(&before, 0, 2), block(&after, 1, 2));
    let intake = store.begin("t", &[before.spec()], false).unwrap();
    intake.place(first.digest, &first.decoded()).unwrap();
    intake.place(second.digest, &second.decoded()).unwrap();
    drop(intake);
    let path = root.path().join(".scatter/t.journal");
    let mut journal = fs::read(&path).unwrap();
    let killed = journal.windows(4).position(|bytes| bytes == b"DEAD").unwrap();
    journal[killed..killed + 4].copy_from_slice(b"LIVE");
    fs::write(&path, journal).unwrap();
    for _ in 0..2 {
        let intake = store.begin("t", &[before.spec()], false).unwrap();
        assert_eq!(intake.held_digests(), [second.digest]);
        drop(intake);
        assert!(!fs::read(&path).unwrap().windows(32).any(|bytes| bytes == first.digest));
    }
}

#[test]
fn a_finished_image_goes_back_to_part_before_it_changes() {
    let root = scratch();
    let store = open(root.path());
    let before = image("a", &[3, 4, 5]);
    let intake = store.begin("t", &[before.spec()], false).unwrap();
    let blocks: Vec<_> = (0..3).map(|i| block(&before, i, i + 1)).collect();
    for block in &blocks {
        intake.place(block.digest, &block.decoded()).unwrap();
    }
    intake.finish(before.vm).unwrap();
    drop(intake);

    // The same again: nothing to do, and the image stays where it is.
    let intake = store.begin("t", &[before.spec()], false).unwrap();
    assert!(blocks.iter().all(|block| intake.confirm_held(&block.digest)));
    assert!(ram(root.path(), "a").exists());
    intake.finish(before.vm).unwrap();
    drop(intake);

    let after = image("a", &[3, 4, 6]);
    let intake = store.begin("t", &[after.spec()], false).unwrap();
    assert!(intake.confirm_held(&blocks[0].digest) && intake.confirm_held(&blocks[1].digest));
    assert!(ram(root.path(), "a").exists());
    let changed = block(&after, 2, 3);
    let stats = intake.place(changed.digest, &changed.decoded()).unwrap();
    assert_eq!(stats.reopened, [after.vm]);
    assert!(!ram(root.path(), "a").exists());
    assert!(intake.is_complete(after.vm));
    assert_eq!(fs::read(intake.finish(after.vm).unwrap()).unwrap(), after.bytes());
}

#[test]
fn a_finished_image_that_somebody_wrote_to_is_not_trusted() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[3, 4]);
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    let all = block(&a, 0, 2);
    intake.place(all.digest, &all.decoded()).unwrap();
    let path = intake.finish(a.vm).unwrap();
    drop(intake);
    // A VM ran on it.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 5000).unwrap();
    drop(file);
    assert_err!(store.begin("t", &[a.spec()], false), StoreError::ImageExists { .. });
    let intake = store.begin("t", &[a.spec()], true).unwrap();
    assert!(intake.held_digests().is_empty());
    assert!(intake.resume_note().is_some_and(|note| note.contains("1 blocks")));
}

#[test]
fn a_restart_of_the_machine_keeps_what_a_checkpoint_covers() {
    let a = image("a", &[3, 4, 5, 6]);
    let blocks: Vec<_> = (0..4).map(|i| block(&a, i, i + 1)).collect();
    let run = |change: bool| {
        let root = scratch();
        let store = open_as(root.path(), "boot-0");
        let intake = store.begin("t", &[a.spec()], false).unwrap();
        for (i, block) in blocks.iter().take(3).enumerate() {
            intake.place(block.digest, &block.decoded()).unwrap();
            if i == 1 {
                intake.checkpoint().unwrap();
            }
        }
        if change {
            let other = image("a", &[8; 4]);
            let other = block(&other, 0, 1);
            intake.place(other.digest, &other.decoded()).unwrap();
        }
        drop(intake);
        drop(store);
        let store = open_as(root.path(), "boot-1");
        let intake = store.begin("t", &[a.spec()], false).unwrap();
        (intake.held_digests(), intake.resume_note().unwrap_or_default().to_owned())
    };
    let (held, note) = run(false);
    assert_eq!(held, [blocks[0].digest, blocks[1].digest]);
    assert!(note.contains("restarted: 1 blocks"), "{note}");
    // A page under the mark changed: the disk may hold any mixture.
    assert_eq!(run(true).0, [[0; 32]; 0]);
}

#[test]
fn abandoning_keeps_everything_across_a_restart() {
    let root = scratch();
    let a = image("a", &[3, 4]);
    let first = block(&a, 0, 1);
    let intake = open_as(root.path(), "boot-0").begin("t", &[a.spec()], false).unwrap();
    intake.place(first.digest, &first.decoded()).unwrap();
    intake.abandon().unwrap();
    for boot in ["boot-1", "boot-2"] {
        let intake = open_as(root.path(), boot).begin("t", &[a.spec()], false).unwrap();
        assert_eq!(intake.held_digests(), [first.digest], "{boot}");
        assert_eq!(intake.resume_note(), None);
    }
}

#[test]
fn changed_sizes_and_lost_files_discard_what_was_held() {
    let a = image("a", &[3, 4]);
    let first = block(&a, 0, 1);
    let begin_after = |change: &dyn Fn(&Path), spec: (VmId, VmSpec)| {
        let root = scratch();
        let store = open(root.path());
        let intake = store.begin("t", &[a.spec()], false).unwrap();
        intake.place(first.digest, &first.decoded()).unwrap();
        drop(intake);
        change(root.path());
        let intake = store.begin("t", &[spec], false).unwrap();
        let len = fs::metadata(part(root.path(), "a")).unwrap().len();
        (intake.held_digests().len(), intake.resume_note().unwrap_or_default().to_owned(), len)
    };
    assert_eq!(begin_after(&|_| {}, a.spec()), (1, String::new(), 8192));
    let (held, note, len) = begin_after(&|_| {}, image("a", &[3, 4, 5]).spec());
    assert_eq!((held, len), (0, 3 * 4096));
    assert!(note.contains("sizes changed"), "{note}");
    let (held, note, len) = begin_after(&|root| fs::remove_file(part(root, "a")).unwrap(), a.spec());
    assert_eq!((held, len), (0, 8192));
    assert!(note.contains("1 blocks are discarded"), "{note}");
    let replaced = |root: &Path| {
        fs::write(part(root, "b"), [0; 8192]).unwrap();
        fs::rename(part(root, "b"), part(root, "a")).unwrap();
    };
    assert_eq!(begin_after(&replaced, a.spec()).0, 0);
    let garbage = |root: &Path| fs::write(root.join(".scatter/t.journal"), "garbage").unwrap();
    let (held, note, _) = begin_after(&garbage, a.spec());
    assert_eq!(held, 0);
    assert!(note.contains("cut off in its header"), "{note}");
}

#[test]
fn a_vm_taken_over_by_another_transfer_is_held_by_the_first_no_more() {
    let root = scratch();
    let store = open(root.path());
    let a = image("a", &[3, 4]);
    let b = Image { vm: VmId(4), ..image("b", &[5, 6]) };
    let (of_a, of_b) = (block(&a, 0, 1), block(&b, 0, 1));
    let intake = store.begin("first", &[a.spec(), b.spec()], false).unwrap();
    intake.place(of_a.digest, &of_a.decoded()).unwrap();
    intake.place(of_b.digest, &of_b.decoded()).unwrap();
    drop(intake);
    let intake = store.begin("second", &[a.spec()], false).unwrap();
    assert!(intake.held_digests().is_empty());
    assert!(intake.resume_note().is_some_and(|note| note.contains("first")));
    drop(intake);
    let intake = store.begin("first", &[a.spec(), b.spec()], false).unwrap();
    assert_eq!(intake.held_digests(), [of_b.digest]);
}

#[test]
fn once_the_disk_lost_data_nothing_is_finished_or_held() {
    let root = scratch();
    let a = image("a", &[3, 4]);
    let faults = faults::Faults::new(1 << 40);
    let disk = Disk { faults: Some(std::sync::Arc::clone(&faults)) };
    let store = Store::open_as(root.path(), "boot-0", u64::MAX, disk).unwrap();
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    let all = block(&a, 0, 2);
    intake.place(all.digest, &all.decoded()).unwrap();
    faults.fail_next_sync();
    assert_err!(intake.checkpoint(), StoreError::WriteBack { .. });
    // The system tells of such a loss once only; later syncs succeed.
    assert_err!(intake.finish(a.vm), StoreError::WriteBack { .. });
    assert_err!(intake.place(all.digest, &all.decoded()), StoreError::WriteBack { .. });
    assert!(!intake.confirm_held(&all.digest));
    assert!(!ram(root.path(), "a").exists());
    drop(intake);
    let intake = store.begin("t", &[a.spec()], false).unwrap();
    assert!(intake.held_digests().is_empty());
    intake.place(all.digest, &all.decoded()).unwrap();
    assert_eq!(fs::read(intake.finish(a.vm).unwrap()).unwrap(), a.bytes());
}
