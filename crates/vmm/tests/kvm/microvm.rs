//! Boot, capture, restore, clones on a shared file; the guest finds what is wrong.

use crate::support::{PATIENCE, booted, full_pass, kvm_or_skip, next_tick, ticks};
use pages::PAGE_SIZE;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vmm::memory::GuestMemory;
use vmm::microvm::guest::PATTERN_AT;
use vmm::microvm::{Config, Identity, MicroVm, MicroVmError, Pattern, Report, StateError, VmState, Workload};

/// Every page is visited in each tick.
const VERIFY: Workload =
    Workload { pattern: Pattern::Sequential, step: 1 << 20, write_percent: 30, idle_us: 1_000 };

#[test]
fn guests_run_pause_and_run_on() {
    if !kvm_or_skip("guests_run_pause_and_run_on") {
        return;
    }
    let mut vm = booted(&Config::default());
    ticks(&vm, 3);
    for _ in 0..20 {
        vm.pause().expect("pauses");
        let from = vm.console().next_index();
        assert!(vm.console().wait(from, std::time::Duration::from_millis(5), |_| true).is_none());
        vm.resume().expect("resumes");
        next_tick(&vm, from);
    }
    for pattern in [Pattern::Sequential, Pattern::HotSet, Pattern::Random] {
        vm.set_workload(Workload { pattern, ..Workload::default() });
        ticks(&vm, 3);
    }
    assert!(matches!(vm.capture(), Err(MicroVmError::Running)));
}

#[test]
fn a_state_continues_in_another_vm_under_its_own_identity() {
    if !kvm_or_skip("a_state_continues_in_another_vm_under_its_own_identity") {
        return;
    }
    let mut source = booted(&Config { seed: 7, ..Config::default() });
    ticks(&source, 2);
    source.pause().expect("pauses");
    let state = source.capture().expect("captured");
    let file = tempfile::tempfile().expect("a file");
    source.memory().write_to(&file).expect("written");
    let captured_at = source
        .console()
        .since(0)
        .iter()
        .rev()
        .find_map(|seen| match seen.report {
            Report::Tick { number, .. } => Some(number),
            _ => None,
        })
        .expect("it has ticked");

    let state = VmState::from_bytes(&state.to_bytes()).expect("its own file");
    let len = usize::try_from(state.memory_bytes()).expect("fits");
    for identity in [1, 0xdead_beef_0123] {
        let memory = Arc::new(GuestMemory::private_file(&file, len).expect("mapped"));
        let mut clone = MicroVm::restore(&state, memory, Identity(identity)).expect("restored");
        clone.set_workload(VERIFY);
        clone.resume().expect("runs");
        let named = clone.console().wait(0, PATIENCE, |report| matches!(report, Report::Clone(_)));
        assert_eq!(named.map(|seen| seen.report), Some(Report::Clone(identity)));
        let number = next_tick(&clone, 0);
        assert!(number > captured_at && number <= captured_at + 2, "{number} after {captured_at}");
        full_pass(&clone);
        assert!(clone.first_exit().is_some());
    }
    // The source itself goes on as well.
    source.resume().expect("runs on");
    source.set_workload(VERIFY);
    full_pass(&source);
}

#[test]
fn clones_of_one_file_diverge_and_leave_it_as_it_is() {
    if !kvm_or_skip("clones_of_one_file_diverge_and_leave_it_as_it_is") {
        return;
    }
    let mut source = booted(&Config::default());
    source.pause().expect("pauses");
    let state = source.capture().expect("captured");
    let file = tempfile::tempfile().expect("a file");
    source.memory().write_to(&file).expect("written");
    drop(source);
    let len = usize::try_from(state.memory_bytes()).expect("fits");
    let mut before = vec![0; len];
    file.read_exact_at(&mut before, 0).expect("read");
    let clones: Vec<MicroVm> = (1..=8)
        .map(|identity| {
            let memory = Arc::new(GuestMemory::private_file(&file, len).expect("mapped"));
            let mut clone = MicroVm::restore(&state, memory, Identity(identity)).expect("restored");
            clone.resume().expect("runs");
            clone
        })
        .collect();
    let mut hashes = BTreeSet::new();
    for mut clone in clones {
        ticks(&clone, 3);
        clone.pause().expect("pauses");
        let mut hasher = blake3::Hasher::new();
        let mut page = [0; PAGE_SIZE];
        for i in 0..clone.memory().page_count() {
            clone.memory().read_page(i, &mut page);
            hasher.update(&page);
        }
        assert!(hashes.insert(*hasher.finalize().as_bytes()), "two clones went the same way");
    }
    let mut after = vec![0; len];
    file.read_exact_at(&mut after, 0).expect("read");
    assert!(before == after, "a clone wrote into the file that all share");
}

#[test]
fn a_wrong_page_is_found() {
    if !kvm_or_skip("a_wrong_page_is_found") {
        return;
    }
    let mut source = booted(&Config { zero_percent: 0, ..Config::default() });
    source.set_workload(VERIFY);
    ticks(&source, 1);
    source.pause().expect("pauses");
    let state = source.capture().expect("captured");
    let file = tempfile::tempfile().expect("a file");
    source.memory().write_to(&file).expect("written");
    let len = usize::try_from(state.memory_bytes()).expect("fits");
    // A page lost, and two pages swapped: what a broken transfer makes.
    let at = |page: u64| PATTERN_AT + page * PAGE_SIZE as u64;
    let pages = (state.memory_bytes() - PATTERN_AT) / PAGE_SIZE as u64;
    let (mut a, mut b) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    file.read_exact_at(&mut a, at(17)).expect("read");
    file.read_exact_at(&mut b, at(pages - 1)).expect("read");
    for damage in ["lost", "swapped"] {
        let copy = tempfile::tempfile().expect("a file");
        source.memory().write_to(&copy).expect("written");
        if damage == "lost" {
            copy.write_all_at(&[0; PAGE_SIZE], at(17)).expect("written");
        } else {
            copy.write_all_at(&b, at(17)).expect("written");
            copy.write_all_at(&a, at(pages - 1)).expect("written");
        }
        let memory = Arc::new(GuestMemory::private_file(&copy, len).expect("mapped"));
        let mut clone = MicroVm::restore(&state, memory, Identity(1)).expect("restored");
        clone.resume().expect("runs");
        let bad = clone.console().wait(0, PATIENCE, |report| matches!(report, Report::Bad(_)));
        assert!(bad.is_some(), "a page that was {damage} was not found: {:?}", clone.console().since(0));
    }
}

#[test]
fn a_damaged_state_is_refused() {
    if !kvm_or_skip("a_damaged_state_is_refused") {
        return;
    }
    let mut vm = booted(&Config { memory_mib: 9, ..Config::default() });
    vm.pause().expect("pauses");
    let bytes = vm.capture().expect("captured").to_bytes();
    for at in [8, 16, 20, 500, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(VmState::from_bytes(&damaged).is_err(), "byte {at}");
    }
    for len in [0, 7, 16, 47, 48, bytes.len() - 1] {
        assert!(VmState::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert_eq!(VmState::from_bytes(b"QEVM").err(), Some(StateError::Magic));
    let state = VmState::from_bytes(&bytes).expect("whole");
    let memory = Arc::new(GuestMemory::anonymous(10 << 20).expect("mapped"));
    let error = MicroVm::restore(&state, memory, Identity(1)).expect_err("another length");
    assert!(matches!(error, MicroVmError::MemoryMismatch { .. }), "{error}");
    let error = MicroVm::boot(&Config { memory_mib: 4096, ..Config::default() }).expect_err("too large");
    assert!(matches!(error, MicroVmError::MemorySize { .. }), "{error}");
}
