//! Clones a running Debian guest under stock QEMU, several times, and measures it beside QEMU's own migration.
//!
//! ```sh
//! examples/guests/make-ticker.sh
//! cargo run --release -p vmm --example qemu-clone -- [CLONES] [MIB]      # default: 4 clones of 256 MiB
//! cargo run --release -p vmm --example qemu-clone -- --record DIR        # first touches of two clones, as working sets
//! ```
//!
//! With `--record` pages come only when they are asked for: what is written is every page that the guest touched, in order.
//!
//! The guest checks its own memory and says so on its serial port; a clone counts when it has ticked. All on one machine, so
//! nothing here is a network's time: this is what capture and emission cost.

#![allow(clippy::unwrap_used, reason = "an example fails by saying why")]

use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::qemu::emit::{TemplateVm, await_status, template_backend};
use vmm::qemu::{
    CaptureOptions, Captured, DeviceState, EmitMode, EmitOptions, Emitter, Identity, Launch, Vm, Way, capture,
};
use vmm::uffd::WorkingSet;

type Outcome<T> = Result<T, Box<dyn Error>>;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == "--record").is_some() {
        return record(Path::new(&args.next().ok_or("--record needs a directory")?));
    }
    let clones: usize = args.next().map_or(Ok(4), |arg| arg.parse())?;
    let mib: u32 = args.next().map_or(Ok(256), |arg| arg.parse())?;
    let dir = tempfile::Builder::new().prefix("qemu-clone-").tempdir_in("/dev/shm")?;
    let machine = machine(mib)?;
    let mut source = machine.boot(Identity::new("source")?, &dir.path().join("source"))?;
    tick(&mut source)?;
    println!("a guest of {mib} MiB ticks; QEMU {}, TCG", source.qmp.version());

    let mut captured = None;
    for way in [Way::LiveStream, Way::MappedRam] {
        let image = dir.path().join(format!("{way:?}"));
        let taken =
            capture(&mut source.qmp, CaptureOptions { way: Some(way), ..CaptureOptions::new(&image) })?;
        tick(&mut source)?;
        let figures = taken.figures;
        println!(
            "captured by {way}: {:.0} ms, {:.0} MB/s of memory, the source stood {:.1} ms, and ticks on",
            ms(figures.total),
            f64::from(mib) * 1.048_576 / figures.total.as_secs_f64(),
            ms(figures.pause)
        );
        if way == Way::LiveStream {
            captured = Some(taken);
        }
    }
    let captured = captured.expect("taken above");
    let (image, state) = loaded(&captured)?;

    for mode in [EmitMode::Precopy, EmitMode::Postcopy] {
        let mut vms = waiting(&machine, clones, &dir.path().join(format!("{mode:?}")))?;
        let start = Instant::now();
        let options = EmitOptions::new(mode);
        let emitters: Result<Vec<Emitter>, _> = vms
            .iter_mut()
            .map(|vm| Emitter::start(&mut vm.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()))
            .collect();
        let (first, last) = first_ticks(&mut vms, start)?;
        for emitter in emitters? {
            emitter.wait()?;
        }
        let done = ms(start.elapsed());
        println!(
            "{clones} clones, {mode:?}: first tick {first:.0} to {last:.0} ms, all memory after {done:.0} ms"
        );
        vms.into_iter().for_each(Vm::quit);
    }
    templates(&machine, &captured, &image, &state, clones, dir.path())?;
    own(&machine, &mut source, dir.path())
}

/// MiB of the guest that is recorded.
const RECORDED_MIB: u32 = 128;
/// A record ends with so many ticks, each of 64 pages that the guest checks.
const RECORDED_TICKS: usize = 24;

/// Starts two clones of one instant, one after the other, each with nothing but the pages that it asks for; writes which these were.
fn record(to: &Path) -> Outcome<()> {
    let dir = tempfile::Builder::new().prefix("qemu-record-").tempdir_in("/dev/shm")?;
    let machine = machine(RECORDED_MIB)?;
    let mut source = machine.boot(Identity::new("source")?, &dir.path().join("source"))?;
    tick(&mut source)?;
    let captured = capture(&mut source.qmp, CaptureOptions::new(&dir.path().join("image")))?;
    source.quit();
    let (image, state) = loaded(&captured)?;
    std::fs::create_dir_all(to)?;
    for number in [1, 2] {
        let mut vm = waiting(&machine, 1, &dir.path().join(format!("clone{number}")))?.remove(0);
        let options = EmitOptions { background: false, ..EmitOptions::new(EmitMode::Postcopy) };
        let emitter = Emitter::start(&mut vm.qmp, Arc::clone(&image), Arc::clone(&state), options)?;
        let (progress, deadline) = (Arc::clone(emitter.progress()), Instant::now() + PATIENCE);
        while ticks(&vm)? < RECORDED_TICKS {
            vm.check()?;
            if Instant::now() > deadline {
                return Err("the recorded clone does not tick".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        emitter.cut();
        vm.quit();
        let file = to.join(format!("ticker-{number}.working-set"));
        let touched = progress.touched();
        std::fs::write(&file, WorkingSet::of(image.page_count(), &touched).to_bytes())?;
        println!(
            "{}: {} of {} pages touched in {RECORDED_TICKS} ticks",
            file.display(),
            touched.len(),
            image.page_count()
        );
    }
    Ok(())
}

/// Clones that share the image's clean pages.
fn templates(
    machine: &Launch,
    captured: &Captured,
    image: &LazyImage,
    state: &DeviceState,
    clones: usize,
    dir: &Path,
) -> Outcome<()> {
    let block = TemplateVm::main_block(state);
    let mut machine = machine.clone();
    let memory = ["-object".to_owned(), template_backend(&captured.image, block)];
    machine.args.extend(memory);
    machine.args.extend(["-machine".to_owned(), format!("memory-backend={}", block.id)]);
    let template = TemplateVm::new(image, state)?;
    let mut vms = waiting(&machine, clones, &dir.join("template"))?;
    let start = Instant::now();
    for vm in &mut vms {
        template.load(&mut vm.qmp, image, &EmitOptions::new(EmitMode::Precopy))?;
    }
    let (first, last) = first_ticks(&mut vms, start)?;
    println!("{clones} clones of a template: first tick {first:.0} to {last:.0} ms; clean pages are shared");
    vms.into_iter().for_each(Vm::quit);
    Ok(())
}

/// QEMU's own migration of the source to one other QEMU, over a socket on this machine.
fn own(machine: &Launch, source: &mut Vm, dir: &Path) -> Outcome<()> {
    let mut target = machine.wait_for_vm(Identity::new("own")?, &dir.join("own"))?;
    let uri = format!("unix:{}", dir.join("own.sock").display());
    target.qmp.execute("migrate-incoming", json!({"uri": uri}))?;
    source.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
    let start = Instant::now();
    source.qmp.execute("migrate", json!({"uri": uri}))?;
    await_status(&mut source.qmp, &["completed"], PATIENCE)?;
    tick(&mut target)?;
    let first = ms(start.elapsed());
    let told = source.qmp.execute("query-migrate", Value::Null)?;
    println!(
        "QEMU's own pre-copy, one VM to one VM, which ends the source: {} ms in all, {} ms down, first tick {first:.0} ms",
        told["total-time"], told["downtime"]
    );
    target.quit();
    Ok(())
}

fn machine(mib: u32) -> Outcome<Launch> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests/ticker");
    let file = |name: &str| -> Outcome<String> {
        let path = guest.join(name).canonicalize().map_err(|error| {
            format!("{}: {error}: run examples/guests/make-ticker.sh first", guest.join(name).display())
        })?;
        Ok(path.to_string_lossy().replace('{', "{{").replace('}', "}}"))
    };
    let append = format!("console=ttyS0 quiet ticker.mib={}", mib / 4);
    let (mib, kernel, initrd) = (mib.to_string(), file("vmlinuz")?, file("initrd")?);
    let args = [
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        &mib,
        "-machine",
        "q35,vmport=off",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "file:{dir}/serial",
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        &append,
    ];
    Ok(Launch { program: "qemu-system-x86_64".into(), args: args.map(str::to_owned).to_vec() })
}

/// What a receiver has once everything has come.
fn loaded(captured: &Captured) -> Outcome<(Arc<LazyImage>, Arc<DeviceState>)> {
    let file = std::fs::File::options().read(true).write(true).open(&captured.image)?;
    let image = LazyImage::over(file, &captured.image)?;
    image.adopt(0, image.page_count())?;
    let state = DeviceState::decode(&captured.state.encode())?;
    Ok((Arc::new(image), Arc::new(state)))
}

fn waiting(machine: &Launch, clones: usize, dir: &Path) -> Outcome<Vec<Vm>> {
    let wait = |number: usize| -> Outcome<Vm> {
        let name = format!("clone{number}");
        Ok(machine.wait_for_vm(Identity::new(&name)?, &dir.join(&name))?)
    };
    (0..clones).map(wait).collect()
}

/// Milliseconds until the first and until the last of them had ticked.
fn first_ticks(vms: &mut [Vm], start: Instant) -> Outcome<(f64, f64)> {
    let mut times: Vec<Option<f64>> = vec![None; vms.len()];
    while times.contains(&None) {
        for (vm, time) in vms.iter_mut().zip(&mut times) {
            if time.is_none() && ticks(vm)? > 0 {
                *time = Some(ms(start.elapsed()));
            }
            vm.check()?;
        }
        if start.elapsed() > PATIENCE {
            return Err("a clone does not tick".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let times = times.into_iter().flatten();
    Ok(times.fold((f64::MAX, 0.0), |(first, last), time| (time.min(first), time.max(last))))
}

/// Waits for one more tick.
fn tick(vm: &mut Vm) -> Outcome<()> {
    let (before, deadline) = (ticks(vm)?, Instant::now() + PATIENCE);
    while ticks(vm)? == before {
        vm.check()?;
        if Instant::now() > deadline {
            return Err(format!("{} does not tick", vm.identity.name).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// How often a guest has found its memory right; an error once it did not.
fn ticks(vm: &Vm) -> Outcome<usize> {
    let said = std::fs::read(vm.dir().join("serial")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    if said.contains("BAD") {
        return Err(format!("{}: {said}", vm.identity.name).into());
    }
    Ok(said.matches(" OK ").count())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
