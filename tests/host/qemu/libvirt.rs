//! libvirt itself: what `virsh save` writes is cloned, and `virsh restore` takes what we write. libvirtd runs in a mount namespace of its
//! own, with nothing of the system's libvirt; the domain is a Debian guest under TCG.

use super::guest::{debian, plain, there};
use super::{Machine, Sweep, say, ticks, wait_for_ticks};
use crate::fleet::{Fleet, PATIENCE};
use crate::process::Running;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vmm::qemu::Launch;

/// libvirtd asks every QEMU that it finds what it can do, which takes some seconds.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// The directories that libvirt has compiled in, emptied; the user whose name it must know; no demon beside it.
const PRIVATE: &str = r#"
set -eu
for dir in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run/libvirt; do
  mkdir -p "$dir"
  mount -t tmpfs tmpfs "$dir"
done
grep -q '^libvirt-qemu:' /etc/passwd || {
  { cat /etc/passwd; echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin'; } >/run/libvirt/passwd
  { cat /etc/group; echo 'libvirt-qemu:x:64055:'; } >/run/libvirt/group
  mount --bind /run/libvirt/passwd /etc/passwd
  mount --bind /run/libvirt/group /etc/group
}
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
END
cat >"$1/libvirtd.conf" <<END
unix_sock_dir = "$1/run"
auth_unix_rw = "none"
END
mkdir -p "$1/run"
exec libvirtd -f "$1/libvirtd.conf" -p "$1/libvirtd.pid"
"#;

struct Libvirt {
    // Dropped in this order: libvirtd, then whatever QEMUs it leaves, which have files in this directory.
    libvirtd: Running,
    _sweep: Sweep,
    dir: PathBuf,
}

impl Libvirt {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", PRIVATE, "sh"]).arg(dir);
        let libvirtd = Running::start(command, "libvirtd", dir.join("libvirtd.log"));
        let mut libvirt = Self { libvirtd, _sweep: Sweep(dir.to_owned()), dir: dir.to_owned() };
        let deadline = Instant::now() + STARTS_WITHIN;
        while libvirt.try_virsh(&["version"]).is_err() {
            let alive = libvirt.libvirtd.is_alive() && Instant::now() < deadline;
            assert!(alive, "libvirtd: {}", libvirt.libvirtd.said());
            std::thread::sleep(Duration::from_millis(200));
        }
        libvirt
    }

    fn try_virsh(&self, args: &[&str]) -> Result<String, String> {
        let uri = format!("qemu:///system?socket={}", self.dir.join("run/libvirt-sock").display());
        let ran = Command::new("virsh")
            .args(["-q", "-c", &uri])
            .args(args)
            .current_dir(&self.dir)
            .env("LC_ALL", "C")
            .output();
        let ran = ran.expect("virsh runs");
        let [out, error] = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        if ran.status.success() { Ok(out) } else { Err(error) }
    }

    #[track_caller]
    fn virsh(&self, args: &[&str]) -> String {
        self.try_virsh(args).unwrap_or_else(|error| panic!("virsh {args:?}: {error}{}", self.libvirtd.said()))
    }
}

/// A domain whose files are in this directory; its serial port tells to `serial` in `NAME`.
fn domain(dir: &Path, files: &[PathBuf; 2]) -> String {
    let [kernel, initrd] = ["vmlinuz", "initrd"].map(|name| dir.join(name));
    symlink(&files[0], &kernel).and_then(|()| symlink(&files[1], &initrd)).expect("links");
    format!(
        "<domain type='qemu'><name>golden</name><memory unit='MiB'>96</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
         <cmdline>console=ttyS0 quiet ticker.mib=16 ticker.pause=20</cmdline></os><features><acpi/></features>
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
         <serial type='file'><source path='{}'/></serial><memballoon model='none'/></devices></domain>",
        kernel.display(),
        initrd.display(),
        dir.join("golden/serial").display(),
    )
}

/// The machine of a domain for `scatter receive`: libvirt's arguments for QEMU, but those by which libvirt itself speaks with it.
fn machine(libvirt: &Libvirt, xml: &str) -> Machine {
    let line = libvirt.virsh(&["domxml-to-native", "qemu-argv", "--xml", xml]);
    // It is quoted for a shell.
    let words = Command::new("sh")
        .args(["-c", &format!("for word in {line}; do printf '%s\\0' \"$word\"; done")])
        .output();
    let words = String::from_utf8(words.expect("sh").stdout).expect("UTF-8");
    let mut words = words
        .split_terminator('\0')
        .skip_while(|word| !word.ends_with("qemu-system-x86_64"))
        .skip(1)
        .peekable();
    let mut args: Vec<String> = Vec::new();
    while let Some(option) = words.next() {
        let value = words.next_if(|word| !word.starts_with('-')).unwrap_or_default();
        let libvirts = ["masterKey0", "charmonitor"].iter().any(|own| value.contains(own));
        if libvirts || ["-name", "-S", "-sandbox", "-uuid"].contains(&option) {
            continue;
        }
        let value = value.replace('{', "{{").replace('}', "}}");
        let value = match value.strip_prefix("file,id=charserial0,path=") {
            Some(_) => "file,id=charserial0,path={dir}/serial".to_owned(),
            None => value,
        };
        args.extend([Some(option.to_owned()), (!value.is_empty()).then_some(value)].into_iter().flatten());
    }
    Machine {
        launch: Launch { program: "qemu-system-x86_64".into(), args },
        mib: 96,
        sweep: super::guest::DEBIAN_SWEEP,
    }
}

#[test]
fn a_saved_domain_becomes_clones_on_hosts_and_a_domain_of_another_name() {
    const TEST: &str = "a_saved_domain_becomes_clones_on_hosts_and_a_domain_of_another_name";
    let tools = ["libvirtd", "virsh"].map(|tool| Command::new(tool).arg("--version").output());
    let tools =
        tools.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| format!("libvirtd, virsh: {error}"));
    let Some(files) = there(TEST, tools.and_then(|_| debian())) else { return };
    let Some(mut fleet) = Fleet::of(TEST, 2) else { return };
    let dir = fleet.dir().to_owned();
    let libvirt = Libvirt::start(&dir);
    fs::create_dir(dir.join("golden")).expect("a directory");
    fs::write(dir.join("golden.xml"), domain(&dir, &files)).expect("written");
    libvirt.virsh(&["create", "golden.xml"]);
    wait_for_ticks(&dir.join("golden"), 3, super::BOOT_WITHIN);
    // As it runs, and by the way that ends it.
    let memory = format!("file={},snapshot=external", dir.join("live.save").display());
    libvirt.virsh(&["snapshot-create-as", "golden", "--live", "--memspec", &memory]);
    libvirt.virsh(&["save", "golden", "golden.save"]);

    let Machine { launch, mib, sweep } = machine(&libvirt, "golden.xml");
    let config = json!({"qemu": [{"name": "golden", "args": launch.args, "end-with-receiver": true}]});
    fs::write(dir.join("machine.json"), config.to_string()).expect("written");
    for host in fleet.numbers() {
        let (keys, clones) = (format!("keys/h{host}"), plain(&dir.join(format!("c{host}"))));
        fleet.start_receiver_args(
            host,
            &keys,
            &[],
            &["--launch", "qemu", "--qemu", "machine.json", "--clones", &clones],
        );
    }
    let mut inventory = fleet.inventory(&[], fleet.numbers(), 1 << 20);
    inventory["vms"] = json!([{"name": "golden", "image": "golden.save", "memory_mib": mib, "to": {"clones": 2},
        "clones_per_host": 1, "launch": {"kind": "qemu"}}]);
    let plan = fleet.plan_of(&inventory);
    let sent = fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    say("2 clones of a saved domain", &sent.report);
    for host in fleet.numbers() {
        let clone = dir.join(format!("c{host}")).join(format!("golden-h{host}-1"));
        wait_for_ticks(&clone, sweep, PATIENCE);
    }

    let xml = libvirt.virsh(&["save-image-dumpxml", "golden.save"]);
    let uuid = xml.lines().find(|line| line.contains("<uuid>")).expect("libvirt gave it one").to_owned();
    for (name, saved) in [("one", "golden.save"), ("two", "live.save")] {
        fs::create_dir(dir.join(name)).expect("a directory");
        let own = xml.replace(&uuid, "").replace("<name>golden<", &format!("<name>{name}<"));
        let own = own.replace("golden/serial", &format!("{name}/serial"));
        fs::write(dir.join("own.xml"), own).expect("written");
        let (folder, image) = (format!("{name}/snapshot"), format!("{name}.save"));
        fleet.scatter(&["capture", "qemu", saved, &folder]);
        fleet.scatter(&["save-image", &folder, "own.xml", &image]);
        libvirt.virsh(&["restore", &image]);
    }
    // What was saved goes on, too.
    libvirt.virsh(&["restore", "golden.save"]);
    let names = libvirt.virsh(&["list", "--name"]);
    assert!(["golden", "one", "two"].iter().all(|name| names.lines().any(|line| line == *name)), "{names}");
    for name in ["golden", "one", "two"] {
        wait_for_ticks(&dir.join(name), ticks(&dir.join(name)) + sweep, PATIENCE);
    }
}
