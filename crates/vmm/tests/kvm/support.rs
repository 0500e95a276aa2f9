//! What the lanes share.

use pages::PAGE_SIZE;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::lazy::Origin;
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

/// A stand-in, and the real program that a variable or PATH names, if there is one.
pub(crate) fn binaries(standin: PathBuf, name: &str, variable: &str) -> Vec<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let real =
        named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()));
    let told = real.as_ref().map_or("none; the stand-in alone".into(), |it| it.display().to_string());
    println!("{name}: {told}");
    [Some(standin), real].into_iter().flatten().collect()
}

/// A VM that was booted from nothing by a hypervisor's process, which is killed when this is dropped.
pub(crate) struct Source<A> {
    pub(crate) child: Child,
    pub(crate) api: A,
    /// What the guest writes.
    pub(crate) console: PathBuf,
}

impl<A> Drop for Source<A> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Right ticks in what a guest wrote; a wrong page fails the test.
pub(crate) fn ticks_in(console: &Path) -> usize {
    let text = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    assert!(!text.contains("BAD"), "{text}");
    text.lines().filter(|line| line.starts_with("TICK ") && line.contains(" OK ")).count()
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A memory file's bytes, and an image of their length with nothing in it.
pub(crate) fn image_of(memory: &Path) -> (Arc<LazyImage>, Vec<u8>) {
    let bytes = std::fs::read(memory).expect("read");
    let pages = u32::try_from(bytes.len() / PAGE_SIZE).expect("few");
    (Arc::new(LazyImage::memfd("clone", pages).expect("a memfd")), bytes)
}

/// Places a page of `bytes`.
pub(crate) fn place(image: &LazyImage, bytes: &[u8], page: u32, origin: Origin) {
    let at = page as usize * PAGE_SIZE;
    let page_bytes = &bytes[at..at + PAGE_SIZE];
    if page_bytes.iter().all(|byte| *byte == 0) {
        image.place_word(page, 1, 0, origin).expect("placed");
    } else {
        image.place(page, page_bytes, origin).expect("placed");
    }
}

/// A thread that brings pages when they are demanded, one after the other, until `stop`; it looks as often as `every` says.
pub(crate) fn answer_demands<'scope>(
    scope: &'scope Scope<'scope, '_>,
    (image, bytes): (&'scope LazyImage, &'scope [u8]),
    stop: &'scope AtomicBool,
    every: Duration,
) {
    scope.spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            match image.next_demand() {
                Some(page) => place(image, bytes, page, Origin::Sender),
                None => std::thread::sleep(every),
            }
        }
    });
}
