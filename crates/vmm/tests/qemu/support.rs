//! Guests that tick, and what is common to the tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::qemu::emit::{TemplateVm, template_backend};
use vmm::qemu::{Captured, DeviceState, Identity, Launch, Vm};

/// A guest boots in 3 to 6 s here; a loaded machine may take ten times as long.
pub(crate) const BOOT_WITHIN: Duration = Duration::from_secs(120);
/// A tick comes each 10 ms.
pub(crate) const TICK_WITHIN: Duration = Duration::from_secs(60);

/// Kernel and initramfs of the guest, or why there are none.
fn guest() -> Result<(PathBuf, PathBuf), String> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let dir = target.join("guests/ticker");
    let files = (dir.join("vmlinuz"), dir.join("initrd"));
    if !files.0.exists() || !files.1.exists() {
        return Err(format!("no guest in {}: examples/guests/make-ticker.sh makes it", dir.display()));
    }
    let version = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    version.map(|_| files).map_err(|error| format!("qemu-system-x86_64: {error}"))
}

/// Nothing more than the machine.
pub(crate) const NONE: &[&str] = &[];

/// A guest's machine. `None`: the test cannot run here, which was printed.
pub(crate) fn machine<S: AsRef<str>>(mib: u32, more: &[S]) -> Option<Launch> {
    let (kernel, initrd) = match guest() {
        Ok(files) => files,
        Err(why) => {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "this lane must run: {why}");
            println!("skipped: {why}");
            return None;
        }
    };
    let text = |path: &Path| path.to_string_lossy().replace('{', "{{").replace('}', "}}");
    let mut args: Vec<String> = [
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-m",
        &mib.to_string(),
        "-machine",
        "q35,vmport=off",
        "-serial",
        "file:{dir}/serial",
        "-kernel",
        &text(&kernel),
        "-initrd",
        &text(&initrd),
        "-append",
        "console=ttyS0 quiet ticker.mib=32",
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(more.iter().map(|arg| arg.as_ref().to_owned()));
    Some(Launch { program: "qemu-system-x86_64".into(), args })
}

/// Where VMs' files go: memory, as images are best on a tmpfs.
pub(crate) fn dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("scatter-qemu-test-").tempdir_in("/dev/shm").unwrap()
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::new(name).unwrap()
}

/// Boots a guest and waits until it ticks.
pub(crate) fn boot(launch: &Launch, dir: &Path, name: &str) -> Vm {
    let mut vm = launch.boot(identity(name), &dir.join(name)).unwrap();
    wait_for_ticks(&mut vm, 3, BOOT_WITHIN);
    vm
}

/// The ticks that a VM's serial port has shown, the last of which may be cut off. Fails if one is BAD.
pub(crate) fn ticks(vm: &Vm) -> Vec<u64> {
    let said = std::fs::read(vm.dir().join("serial")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("BAD"), "{}: {}", vm.identity.name, &said[said.len().saturating_sub(800)..]);
    let number = |line: &str| line.strip_prefix("TICK ")?.split_once(" OK ")?.0.parse().ok();
    said.lines().filter_map(number).collect()
}

/// Waits until a VM has ticked so many times since it was started here; its last tick.
pub(crate) fn wait_for_ticks(vm: &mut Vm, count: usize, within: Duration) -> u64 {
    let deadline = Instant::now() + within;
    loop {
        let ticks = ticks(vm);
        if ticks.len() >= count {
            return *ticks.last().unwrap();
        }
        vm.check().unwrap();
        if Instant::now() > deadline {
            let said = std::fs::read(vm.dir().join("serial")).unwrap_or_default();
            let status = vm.qmp.execute("query-migrate", serde_json::Value::Null);
            let state = vm.qmp.execute("query-status", serde_json::Value::Null);
            panic!(
                "{}: {} ticks of {count}; {}; {status:?} {state:?}",
                vm.identity.name,
                ticks.len(),
                String::from_utf8_lossy(&said)
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a VM that ticked before ticks on.
pub(crate) fn ticks_on(vm: &mut Vm) {
    let before = ticks(vm).len();
    // More than one sweep over all of the guest's memory.
    wait_for_ticks(vm, before + 70, TICK_WITHIN);
}

/// What a receiver has once it has everything.
pub(crate) fn complete_image(captured: &Captured) -> Arc<LazyImage> {
    let image = empty_image(&captured.state);
    fill(&image, captured, 0..image.page_count());
    image
}

pub(crate) fn empty_image(state: &DeviceState) -> Arc<LazyImage> {
    Arc::new(LazyImage::memfd("test", state.page_count()).unwrap())
}

/// Places pages as they stand in a captured image.
pub(crate) fn fill(image: &LazyImage, captured: &Captured, pages: std::ops::Range<u32>) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(&captured.image).unwrap();
    let mut page = [0; 4096];
    for number in pages {
        file.read_exact_at(&mut page, u64::from(number) * 4096).unwrap();
        if page == [0; 4096] {
            image.place_word(number, 1, 0, Origin::Block).unwrap();
        } else {
            image.place(number, &page, Origin::Block).unwrap();
        }
    }
}

/// The state as it arrives at a receiver.
pub(crate) fn sent(state: &DeviceState) -> Arc<DeviceState> {
    Arc::new(DeviceState::decode(&state.encode()).unwrap())
}

/// Arguments for RAM in a shared file.
pub(crate) fn shared_memory(path: &Path, mib: u32) -> [String; 4] {
    [
        "-object".into(),
        format!("memory-backend-file,id=pc.ram,size={mib}M,mem-path={},share=on", path.display()),
        "-machine".into(),
        "memory-backend=pc.ram".into(),
    ]
}

/// The machine of clones over a captured image.
pub(crate) fn template_machine(captured: &Captured) -> Launch {
    let block = TemplateVm::main_block(&captured.state);
    let object = template_backend(&captured.image, block);
    let more = ["-object", &object, "-machine", &format!("memory-backend={}", block.id)];
    machine(128, &more).unwrap()
}

/// Pages of a file's mapping that a process has changed.
pub(crate) fn private_dirty_mib(pid: u32, file: &Path) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut within = false;
    let mut kib = 0;
    for line in maps.lines() {
        if let Some(value) = line.strip_prefix("Private_Dirty:") {
            let value: u64 = value.trim().trim_end_matches(" kB").parse().unwrap();
            kib += if within { value } else { 0 };
        } else if line.contains('-') && !line.contains(": ") {
            within = line.ends_with(&*file.to_string_lossy());
        }
    }
    kib / 1024
}

/// Waits until QEMU says that it has everything.
pub(crate) fn settled(vm: &mut Vm) {
    vmm::qemu::emit::await_status(&mut vm.qmp, &["completed"], TICK_WITHIN).unwrap();
}

/// Brings an image what it lacks, as a network would: what is asked for first, the rest in an order of its own.
pub(crate) fn feed(image: &Arc<LazyImage>, captured: &Captured) -> JoinHandle<()> {
    let (image, captured) = (Arc::clone(image), captured.clone());
    std::thread::spawn(move || {
        let count = image.page_count();
        // A step that has no divisor in common with the count visits every page.
        let step = (count / 2..).find(|step| gcd(*step, count) == 1).unwrap();
        let mut page = 0;
        for turn in 0..count {
            while let Some(wanted) = image.next_demand() {
                fill(&image, &captured, wanted..wanted + 1);
            }
            fill(&image, &captured, page..page + 1);
            page = (page + step) % count;
            if turn % 64 == 0 {
                std::thread::sleep(Duration::from_millis(4));
            }
        }
    })
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
