//! A machine that this host may start: QEMU, its arguments, and the disk of its clones.

use super::waiting::{Ready, Seen, Shelf};
use crate::guests::words::words;
use serde::Deserialize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vmm::lazy::LazyImage;
use vmm::qemu::emit::template_backend;
use vmm::qemu::launch::make_overlay;
use vmm::qemu::stream::Block;
use vmm::qemu::{Fingerprint, Identity, Launch, RamBlockRow, Vm};

/// What a host's own configuration tells of a machine; a table `[[qemu]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QemuMachine {
    /// For messages.
    pub name: String,
    /// QEMU; default `qemu-system-x86_64`.
    #[serde(default = "default_program")]
    pub program: PathBuf,
    /// Everything that makes the machine, as the source was started. `{name}`, `{vmgenid}`, `{mac}`, `{disk}` and `{dir}` stand for
    /// what a clone has of its own; `-name`, `-qmp` and `-incoming` are added.
    pub args: Vec<String>,
    /// What `{disk}` is an overlay over.
    #[serde(default)]
    pub disk: Option<BaseDisk>,
    /// How clones have their memory.
    #[serde(default)]
    pub memory: MemoryKind,
    /// Clones end when the receiver does. Default: those that depend on nobody run on.
    #[serde(default)]
    pub end_with_receiver: bool,
    /// How many QEMUs wait for VMs that nobody has offered yet, at most 64. Default 0: they are started at the offer.
    #[serde(default)]
    pub warm: usize,
}

/// Most QEMUs of a machine that wait for whoever comes.
const WARM_MAX: usize = 64;

/// A disk as it was while the source stood. Must not change while a clone lives.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseDisk {
    /// The file.
    pub file: PathBuf,
    /// Its format, as qemu-img names it: `raw`, `qcow2`.
    pub format: String,
}

/// How clones have their memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryKind {
    /// Each its own, by post-copy: it runs at once, and what it touches is brought first.
    #[default]
    Private,
    /// Clean pages are shared by all clones of the host: it runs as soon as the whole image is here.
    Shared,
}

fn default_program() -> PathBuf {
    "qemu-system-x86_64".into()
}

/// A machine that was tried.
pub(super) struct Machine {
    config: QemuMachine,
    launch: Launch,
    fingerprint: Fingerprint,
    pub(super) shelf: Shelf,
}

impl Machine {
    /// Starts the machine once, to see what it is.
    pub(super) fn probe(config: &QemuMachine, dir: &Path) -> Result<Self, String> {
        let (machine, vm, _probe) = Self::tried(config, dir)?;
        vm.kill();
        Ok(machine)
    }

    /// The same of one without a disk; that QEMU waits for whoever comes first.
    pub(super) fn probe_and_keep(config: &QemuMachine, dir: &Path) -> Result<Self, String> {
        let (machine, vm, probe) = Self::tried(config, dir)?;
        // The QEMU has its folder from now on.
        let _ = probe.keep();
        machine.shelf.put(vm, None);
        Ok(machine)
    }

    /// A machine, the QEMU by which it was tried, and that one's folder.
    fn tried(config: &QemuMachine, dir: &Path) -> Result<(Self, Vm, TempDir), String> {
        let named = |error: &dyn std::error::Error| format!("machine {}: {}", config.name, words(error));
        let probe = tempfile::Builder::new().prefix(".probe-").tempdir_in(dir);
        let probe = probe.map_err(|error| format!("cannot use {}: {error}", dir.display()))?;
        let launch = Launch { program: config.program.clone(), args: config.args.clone() };
        let identity = identity("probe", config.disk.as_ref(), probe.path())?;
        let mut vm = launch.wait_for_vm(identity, probe.path()).map_err(|error| named(&error))?;
        let fingerprint = Fingerprint::of(&mut vm.qmp).map_err(|error| named(&error))?;
        if config.memory == MemoryKind::Private {
            // It says itself what is missing: a kernel without userfaultfd, or the right to use it.
            vm.qmp.set_capabilities(&[("postcopy-ram", true)]).map_err(|error| named(&error))?;
        }
        let machine = Self { config: config.clone(), launch, fingerprint, shelf: Shelf::default() };
        machine.can_wait().map_err(|reason| format!("machine {}: warm: {reason}", config.name))?;
        if config.memory == MemoryKind::Shared {
            let shareable = machine.can_share();
            shareable.map_err(|reason| format!("machine {}: memory = \"shared\": {reason}", config.name))?;
        }
        Ok((machine, vm, probe))
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn memory(&self) -> MemoryKind {
        self.config.memory
    }

    pub(super) fn keeps(&self) -> bool {
        !self.config.end_with_receiver
    }

    /// Whether a VM that was offered can go on in it.
    pub(super) fn fits(&self, offered: &Fingerprint) -> Result<(), String> {
        offered.offered_fits(&self.fingerprint).map_err(|mismatch| mismatch.to_string())?;
        if self.memory() == MemoryKind::Private {
            return same_page_sizes(&offered.blocks, &self.fingerprint.blocks);
        }
        Ok(())
    }

    /// Whether its QEMUs can wait for whoever comes, if they are to.
    fn can_wait(&self) -> Result<(), String> {
        if self.config.warm == 0 {
            return Ok(());
        }
        if self.config.warm > WARM_MAX {
            return Err(format!("at most {WARM_MAX} wait"));
        }
        if self.memory() == MemoryKind::Shared {
            return Err(
                "memory that is shared is a clone's image, which is not there yet: leave it out".into()
            );
        }
        match self.config.args.iter().find(|arg| arg.contains("{name}")) {
            Some(arg) => {
                Err(format!("{arg} names the clone, which is not known yet: use {{dir}} or {{vmgenid}}"))
            }
            None => Ok(()),
        }
    }

    /// How many more are to wait.
    pub(super) fn wanted(&self) -> usize {
        self.config.warm.saturating_sub(self.shelf.prune(self.disk_seen()))
    }

    /// Starts one that waits for whoever comes.
    pub(super) fn stock(&self, dir: &Path) -> Result<(), String> {
        let name = format!("{}-warm", self.config.name);
        let disk = self.disk_seen();
        let vm = self.start(&name, dir, None)?;
        self.shelf.put(vm, disk);
        Ok(())
    }

    /// What tells whether the disk under overlays is still the same.
    fn disk_seen(&self) -> Option<Seen> {
        let metadata = std::fs::metadata(&self.config.disk.as_ref()?.file).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()?))
    }

    /// Whether clean pages can be shared: by a QEMU that can leave memory out of its stream, over a single large block of ordinary
    /// pages, and with no device that gives memory back, as that would punch holes in the file of all.
    fn can_share(&self) -> Result<(), String> {
        let knows = self.fingerprint.capabilities.iter().any(|name| name == "x-ignore-shared");
        if !knows {
            return Err(format!("QEMU {} has no capability x-ignore-shared", self.fingerprint.version));
        }
        if self.main_block().page_size != 4096 {
            return Err("its RAM is in huge pages, which are not shared: leave them out".into());
        }
        let backs = |arg: &String| arg.contains("memory-backend");
        if self.config.args.iter().any(backs) {
            return Err("its arguments name a memory backend, in place of which the shared one goes".into());
        }
        let gives =
            |arg: &&String| ["balloon", "virtio-mem", "vhost-user"].iter().any(|word| arg.contains(word));
        match self.config.args.iter().find(gives) {
            Some(arg) => Err(format!("{arg} does not go with shared memory (QEMU, vm-templating)")),
            None => Ok(()),
        }
    }

    fn main_block(&self) -> &RamBlockRow {
        self.fingerprint.blocks.iter().max_by_key(|block| block.used).expect("a machine has memory")
    }

    /// A QEMU that waits for a clone's state, in an empty folder of the clone's own: one that waits already, or a new one. With
    /// memory from `shared`, if that is given; `standing`: the VM does not run when it is loaded.
    pub(super) fn wait_for_vm(
        &self,
        name: &str,
        dir: &Path,
        shared: Option<(&LazyImage, &Block)>,
        standing: bool,
    ) -> Result<Ready, String> {
        let waiting = if shared.is_none() { self.shelf.take(self.disk_seen(), name, dir) } else { Err(None) };
        let (mut vm, instead) = match waiting {
            Ok(vm) => (vm, None),
            Err(given_up) => (self.start(name, dir, shared)?, given_up),
        };
        if standing {
            // Said while it waits, this is what `-S` would have been.
            vm.qmp.execute("stop", serde_json::Value::Null).map_err(|error| words(&error))?;
        }
        Ok(Ready { vm, instead })
    }

    fn start(&self, name: &str, dir: &Path, shared: Option<(&LazyImage, &Block)>) -> Result<Vm, String> {
        let identity = identity(name, self.config.disk.as_ref(), dir)?;
        let mut launch = self.launch.clone();
        if let Some((image, block)) = shared {
            share(&mut launch, image, block);
        }
        // Guests are no more urgent for coming here.
        usage::priority::leave();
        launch.wait_for_vm(identity, dir).map_err(|error| words(&error))
    }
}

/// Post-copy is between memories of the same page sizes only: QEMU ends with an error otherwise.
fn same_page_sizes(offered: &[RamBlockRow], here: &[RamBlockRow]) -> Result<(), String> {
    let pairs = offered.iter().filter_map(|row| Some((row, here.iter().find(|other| other.id == row.id)?)));
    match pairs.into_iter().find(|(row, other)| row.page_size != other.page_size) {
        Some((row, other)) => Err(format!(
            "RAM block {}: the source has pages of {} bytes, the destination of {}, and post-copy needs the same: give both huge pages, or \
             neither",
            row.id, row.page_size, other.page_size
        )),
        None => Ok(()),
    }
}

/// Memory from the image's file.
fn share(launch: &mut Launch, image: &LazyImage, block: &Block) {
    // The file may have no name (a memfd); this process lends its descriptor's.
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.file().as_raw_fd());
    let object = template_backend(Path::new(&path), block).replace('{', "{{").replace('}', "}}");
    launch.args.extend(["-object".to_owned(), object]);
    launch.args.extend(["-machine".to_owned(), format!("memory-backend={}", block.id)]);
}

/// Who a clone is: everything random, and an overlay of its own.
fn identity(name: &str, disk: Option<&BaseDisk>, dir: &Path) -> Result<Identity, String> {
    let mut identity = Identity::new(name).map_err(|error| words(&error))?;
    if let Some(base) = disk {
        let overlay = dir.join("disk.qcow2");
        make_overlay(&base.file, &base.format, &overlay).map_err(|error| words(&error))?;
        identity.disk = Some(overlay);
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, page_size: u64) -> RamBlockRow {
        RamBlockRow { id: id.into(), page_size, used: 1 << 27, max: 1 << 27 }
    }

    fn machine(config: &str, page_size: u64) -> Machine {
        let config: QemuMachine = serde_json::from_str(config).expect("a machine");
        let launch = Launch { program: config.program.clone(), args: config.args.clone() };
        let blocks = vec![row("pc.bios", 4096), row("pc.ram", page_size)];
        let fingerprint =
            Fingerprint { blocks, capabilities: vec!["x-ignore-shared".into()], ..Fingerprint::default() };
        Machine { config, launch, fingerprint, shelf: Shelf::default() }
    }

    #[test]
    fn huge_pages_at_one_end_only_are_refused_in_words() {
        let plain = r#"{"name": "a", "args": []}"#;
        let offered =
            |page_size| Fingerprint { blocks: vec![row("pc.ram", page_size)], ..Fingerprint::default() };
        assert_eq!(machine(plain, 4096).fits(&offered(4096)), Ok(()));
        assert_eq!(machine(plain, 2 << 20).fits(&offered(2 << 20)), Ok(()));
        let refused = machine(plain, 2 << 20).fits(&offered(4096)).expect_err("QEMU would end");
        assert!(refused.contains("RAM block pc.ram: the source has pages of 4096 bytes"), "{refused}");
        assert!(machine(plain, 4096).fits(&offered(2 << 20)).is_err());
        // A template is read as a whole, whatever the source's pages were.
        let shared = r#"{"name": "a", "args": [], "memory": "shared"}"#;
        assert_eq!(machine(shared, 4096).fits(&offered(2 << 20)), Ok(()));
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let shared = |arg: &str| format!(r#"{{"name": "a", "args": ["{arg}"], "memory": "shared"}}"#);
        assert_eq!(machine(&shared("-nodefaults"), 4096).can_share(), Ok(()));
        for (arg, page_size, word) in [
            ("-nodefaults", 2 << 20, "huge pages"),
            ("virtio-balloon-pci", 4096, "virtio-balloon-pci does not go with"),
            ("memory-backend-file,id=m", 4096, "memory backend"),
        ] {
            let refused = machine(&shared(arg), page_size).can_share().expect_err(arg);
            assert!(refused.contains(word), "{refused}");
        }
        assert!(serde_json::from_str::<QemuMachine>(r#"{"name": "a", "args": [], "disc": 1}"#).is_err());
    }

    #[test]
    fn what_cannot_wait_for_whoever_comes_is_named() {
        let refused = |config: &str| machine(config, 4096).can_wait().expect_err(config);
        assert_eq!(machine(r#"{"name": "a", "args": ["{dir}"], "warm": 2}"#, 4096).can_wait(), Ok(()));
        assert!(
            refused(r#"{"name": "a", "args": ["-uuid", "{name}"], "warm": 2}"#).contains("names the clone")
        );
        assert!(refused(r#"{"name": "a", "args": [], "warm": 1, "memory": "shared"}"#).contains("shared"));
        assert!(refused(r#"{"name": "a", "args": [], "warm": 65}"#).contains("at most 64"));
    }
}
