//! What the lanes share.

use std::time::Duration;
use vmm::microvm::{self, Config, MicroVm, Report};

/// Time-outs are for hangs, not for speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether micro-VMs run here. Says so if not.
///
/// A machine without `/dev/kvm` has nothing to try this on, whatever else is required; one whose device may not be
/// opened fails where all lanes must run.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    match microvm::available() {
        Ok(()) => true,
        Err(error) => {
            let there = std::path::Path::new("/dev/kvm").exists();
            let required = std::env::var_os("SCATTER_REQUIRE_LAB").is_some();
            assert!(!(there && required), "{test}: /dev/kvm is there, but: {error}");
            println!("skipped: {test}: {error}");
            false
        }
    }
}

/// Boots a guest and waits until its pattern is written and it has ticked.
pub(crate) fn booted(config: &Config) -> MicroVm {
    let vm = MicroVm::boot(config).expect("boots");
    let ready = vm.console().wait(0, PATIENCE, |report| matches!(report, Report::Ready { .. }));
    assert!(
        ready.is_some(),
        "the guest says nothing: {:?} {:?}",
        vm.console().since(0),
        vm.console().ended()
    );
    next_tick(&vm, 0);
    vm
}

/// Waits for a tick with index ≥ `from`, which must be right. Its number.
pub(crate) fn next_tick(vm: &MicroVm, from: u64) -> u64 {
    let tick = vm.console().wait(from, PATIENCE, |report| matches!(report, Report::Tick { .. }));
    match tick.map(|seen| seen.report) {
        Some(Report::Tick { number, ok: true, .. }) => number,
        other => panic!("{other:?}; console: {:?}; {:?}", vm.console().since(from), vm.console().ended()),
    }
}

/// Waits for `ticks` more ticks, all right.
pub(crate) fn ticks(vm: &MicroVm, ticks: usize) {
    for _ in 0..ticks {
        next_tick(vm, vm.console().next_index());
    }
    assert_eq!(vm.console().bad_reports(), 0, "{:?}", vm.console().since(0));
}

/// Lets the guest go through all its pages and its own tables: everything is right.
pub(crate) fn full_pass(vm: &MicroVm) {
    for _ in 0..2 {
        // The second pass saw every page after this call, whatever the guest was at.
        let from = vm.console().next_index();
        let pass = vm.console().wait(from, PATIENCE, |report| matches!(report, Report::Pass { .. }));
        match pass.map(|seen| seen.report) {
            Some(Report::Pass { ok: true, .. }) => {}
            other => panic!("{other:?}; {:?}; {:?}", vm.console().since(from), vm.console().ended()),
        }
    }
    assert_eq!(vm.console().bad_reports(), 0);
}

/// Sets a flag when it is dropped, also by a panic: threads of a scope that look at it end, and the panic is seen.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}
