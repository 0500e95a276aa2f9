//! Machines whose guests check their own memory, and what they tell.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::qemu::Launch;

/// A guest boots in some seconds; a loaded machine may take ten times as long.
pub(crate) const BOOT_WITHIN: Duration = Duration::from_secs(120);
/// Ticks within which the Debian guest has looked at all of its memory.
pub(super) const DEBIAN_SWEEP: usize = 70;
/// The same of the guest at ring 3, whose ticks cost much: each byte that it says is an exit of its own.
const RING_THREE_SWEEP: usize = 14;

/// A machine, its guest included.
pub(crate) struct Machine {
    pub(crate) launch: Launch,
    pub(crate) mib: u32,
    /// Ticks within which it has looked at all of its memory.
    pub(crate) sweep: usize,
}

impl Machine {
    /// With further arguments of QEMU.
    pub(crate) fn with<S: AsRef<str>>(mut self, more: &[S]) -> Self {
        self.launch.args.extend(more.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }
}

/// Debian's kernel and initramfs, or why there are none.
pub(super) fn debian() -> Result<[PathBuf; 2], String> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let files = ["vmlinuz", "initrd"].map(|file| target.join("guests/ticker").join(file));
    if files.iter().any(|file| !file.exists()) {
        return Err(format!("{} is missing: examples/guests/make-ticker.sh makes it", files[0].display()));
    }
    has_qemu().map(|()| files)
}

fn has_qemu() -> Result<(), String> {
    let version = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    version.map(drop).map_err(|error| format!("qemu-system-x86_64: {error}"))
}

/// What is there; says why the test is skipped, or fails it, if it is not.
pub(super) fn there<T>(test: &str, found: Result<T, String>) -> Option<T> {
    found
        .inspect_err(|why| {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "{test} must run: {why}");
            println!("{test} skipped: {why}");
        })
        .ok()
}

/// A path among a launcher's arguments.
pub(super) fn plain(path: &Path) -> String {
    path.to_string_lossy().replace('{', "{{").replace('}', "}}")
}

/// A Debian guest under TCG that works on `work_mib` of its memory.
pub(crate) fn linux(test: &str, mib: u32, work_mib: u32) -> Option<Machine> {
    let [kernel, initrd] = there(test, debian())?.map(|file| plain(&file));
    let fixed = "-accel tcg -cpu max -nodefaults -no-reboot -display none -machine q35,vmport=off -device vmgenid,guid={vmgenid} \
                 -serial file:{dir}/serial -qmp unix:{dir}/user.sock,server=on,wait=off";
    let append = format!("console=ttyS0 quiet ticker.mib={work_mib} ticker.pause=20");
    let launch =
        Launch { program: "qemu-system-x86_64".into(), args: fixed.split(' ').map(str::to_owned).collect() };
    let machine = Machine { launch, mib, sweep: DEBIAN_SWEEP };
    Some(machine.with(&["-m", &mib.to_string(), "-kernel", &kernel, "-initrd", &initrd, "-append", &append]))
}

/// The self-checking guest of `crates/vmm/guest`, which runs at ring 3 in a machine of this type (`microvm`, `q35`): under KVM where it
/// can be used, else under TCG, and says which. Two thirds of its memory are pages to be checked.
pub(crate) fn ring_three(test: &str, kind: &str, mib: u32) -> Option<Machine> {
    there(test, has_qemu())?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let accelerator = if kvm.is_ok() { "kvm" } else { "tcg" };
    println!(
        "{test}: {kind} under {accelerator}{}",
        kvm.err().map_or_else(String::new, |error| format!(": /dev/kvm: {error}"))
    );
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let elf = dir.join("ring-three.elf");
    let written = tempfile::NamedTempFile::new_in(dir).expect("a file");
    fs::write(&written, vmm::microvm::guest::ELF).expect("written");
    written.persist(&elf).expect("renamed");
    let checked = mib * 2 / 3;
    let step = ((checked - 8) << 8).div_ceil(12);
    let append = format!("mb={checked} seed=7 zero=30 dup=20 pattern=1 step={step} write=2 idle=4000000");
    let mut fixed = format!(
        "-accel {accelerator} -cpu max,arch-capabilities=off -nodefaults -no-reboot -display none -machine {kind} -serial file:{{dir}}/serial \
         -qmp unix:{{dir}}/user.sock,server=on,wait=off -m {mib}"
    );
    if kind != "microvm" {
        fixed += " -device vmgenid,guid={vmgenid}";
    }
    let launch =
        Launch { program: "qemu-system-x86_64".into(), args: fixed.split(' ').map(str::to_owned).collect() };
    let machine = Machine { launch, mib, sweep: RING_THREE_SWEEP };
    Some(machine.with(&["-kernel", &plain(&elf), "-append", &append]))
}

/// Ends QEMUs that a test which failed, or a receiver which was killed, left behind: those with files in the test's directory.
pub(crate) struct Sweep(pub(crate) PathBuf);

impl Drop for Sweep {
    fn drop(&mut self) {
        let Ok(processes) = fs::read_dir("/proc") else { return };
        for process in processes.flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let program = line.split('\0').next().unwrap_or_default();
            if program.contains("qemu-system") && line.contains(&*self.0.to_string_lossy()) {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The ticks that a guest has told on its serial port since it was started here. Fails if one is BAD.
pub(crate) fn ticks(dir: &Path) -> usize {
    let said = fs::read(dir.join("serial")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("BAD"), "{}: {}", dir.display(), &said[said.len().saturating_sub(800)..]);
    said.lines().filter(|line| line.starts_with("TICK ") && line.contains(" OK ")).count()
}

#[track_caller]
pub(crate) fn wait_for_ticks(dir: &Path, count: usize, within: Duration) {
    let deadline = Instant::now() + within;
    while ticks(dir) < count {
        assert!(Instant::now() < deadline, "{}: {} ticks of {count}", dir.display(), ticks(dir));
        std::thread::sleep(Duration::from_millis(5));
    }
}
