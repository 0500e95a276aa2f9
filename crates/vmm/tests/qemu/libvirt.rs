//! libvirt's saved images, made and loaded as libvirt does it: the stream behind libvirt's head, over a descriptor.

use crate::support::{NONE, TICK_WITHIN, boot, dir, identity, machine, settled, ticks_on, wait_for_ticks};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use vmm::qemu::libvirt::{SaveError, SaveFormat, SaveHead, read, read_head, write};
use vmm::qemu::{EmitMode, EmitOptions, Emitter, QemuError, Qmp, Vm};
use vmm::{ImageFormat, MappedImage};

const XML: &str = "<domstatus>\n  <domain type='qemu'><name>a</name></domain>\n</domstatus>\n";
const COOKIE: &str = "<cookie/>\n";

fn migrated(qmp: &mut Qmp) {
    vmm::qemu::emit::await_status(qmp, &["completed"], TICK_WITHIN).unwrap();
}

/// Saves a VM as libvirt does.
fn save(vm: &mut Vm, path: &Path, format: SaveFormat) -> SaveHead {
    let mut head = SaveHead::new(XML.into(), Some(COOKIE.into()), true).unwrap();
    head.format = format;
    let mut file = File::create(path).unwrap();
    file.write_all(&head.encode(false).unwrap()).unwrap();
    match format {
        SaveFormat::Raw => {
            vm.qmp.send_fd("save", &file).unwrap();
            vm.qmp.execute("migrate", json!({"uri": "fd:save"})).unwrap();
        }
        _ => {
            vm.qmp.set_capabilities(&[("mapped-ram", true)]).unwrap();
            vm.qmp.with_fd(&file, "add-fd", json!({"fdset-id": 1})).unwrap();
            let uri = format!("file:/dev/fdset/1,offset={}", head.stream_offset());
            vm.qmp.execute("migrate", json!({"uri": uri})).unwrap();
        }
    }
    migrated(&mut vm.qmp);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&head.encode(true).unwrap()[..92]).unwrap();
    head
}

/// Restores a VM as libvirt does: the stream's descriptor, behind the head.
fn restored(machine: &vmm::qemu::Launch, path: &Path, dir: &Path) -> Vm {
    let mut file = File::open(path).unwrap();
    let head = read_head(&file, path).unwrap();
    file.seek(SeekFrom::Start(head.stream_offset())).unwrap();
    let mut vm = machine.wait_for_vm(identity("restored"), dir).unwrap();
    vm.qmp.send_fd("restore", &file).unwrap();
    vm.qmp.execute("migrate-incoming", json!({"uri": "fd:restore"})).unwrap();
    migrated(&mut vm.qmp);
    vm
}

#[test]
fn saved_images_are_read_and_written_so_that_they_can_be_restored() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    for format in [SaveFormat::Raw, SaveFormat::Sparse] {
        let saved = dir.path().join(format!("{format:?}.save"));
        let image = dir.path().join(format!("{format:?}.ram"));
        let head = save(&mut source, &saved, format);
        let (found, state) = read(&saved, &image).unwrap();
        assert_eq!((found.format, &found.xml, &found.cookie), (format, &head.xml, &head.cookie));
        let pages = MappedImage::open(&image, Some(ImageFormat::Raw)).unwrap();

        // A clone's image: other XML, the same memory.
        let renamed =
            SaveHead::new(XML.replace("<name>a", "<name>clone"), found.cookie.clone(), true).unwrap();
        let written = dir.path().join(format!("{format:?}.clone"));
        write(&written, &renamed, &pages, &state).unwrap();
        let mut vm = restored(&machine, &written, &dir.path().join(format!("{format:?}")));
        wait_for_ticks(&mut vm, 1, TICK_WITHIN);
        ticks_on(&mut vm);
        vm.quit();

        // What was read is what was written, and can be emitted like any other.
        let again = dir.path().join(format!("{format:?}.again"));
        let (head, second) = read(&written, &again).unwrap();
        assert_eq!(head, renamed);
        assert!(second.devices == state.devices && second.blocks == state.blocks);
        assert!(
            std::fs::read(&again).unwrap() == std::fs::read(&image).unwrap(),
            "the memory, byte for byte"
        );
        if format == SaveFormat::Raw {
            let file = File::options().read(true).write(true).open(&again).unwrap();
            let lazy = vmm::LazyImage::over(file, &again).unwrap();
            lazy.adopt(0, lazy.page_count()).unwrap();
            let mut vm = machine.wait_for_vm(identity("emitted"), &dir.path().join("emitted")).unwrap();
            let options = EmitOptions::new(EmitMode::Postcopy);
            let emitter =
                Emitter::start(&mut vm.qmp, lazy.into(), crate::support::sent(&second), options.clone())
                    .unwrap();
            emitter.wait().unwrap();
            settled(&mut vm);
            ticks_on(&mut vm);
            vm.quit();
        }
        [&saved, &image, &written, &again].iter().for_each(|path| std::fs::remove_file(path).unwrap());
        source.qmp.execute("cont", Value::Null).unwrap();
        ticks_on(&mut source);
    }
    source.quit();
}

#[test]
fn heads_are_libvirts_byte_for_byte() {
    let head = SaveHead::new(XML.into(), Some(COOKIE.into()), true).unwrap();
    let bytes = head.encode(true).unwrap();
    let xml = u32::try_from(XML.len() + 1).unwrap();
    let data_len = xml + u32::try_from(COOKIE.len()).unwrap() + 1 + 65_536;
    let fields = [2, data_len, 1, 0, xml].map(u32::to_le_bytes).concat();
    assert_eq!(bytes[..16], *b"LibvirtQemudSave");
    assert_eq!(bytes[16..36], fields);
    assert_eq!(bytes[36..92], [0; 56]);
    assert_eq!(bytes.len(), 92 + data_len as usize);
    assert_eq!(SaveHead::decode(&bytes), Ok(Some(head.clone())));
    for cut in [0, 15, 50, 91, 92, bytes.len() - 1] {
        assert_eq!(SaveHead::decode(&bytes[..cut]), Ok(None), "{cut}");
    }
    // Edited in place: what follows stays where it is.
    let edited = SaveHead { xml: XML.replace("<name>a", "<name>another"), ..head.clone() };
    assert_eq!(edited.encode(true).unwrap().len(), bytes.len());
    let long = SaveHead { xml: "x".repeat(70_000), ..head };
    assert!(matches!(long.encode(true), Err(SaveError::NoRoom { .. })));
    let with = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        SaveHead::decode(&bytes)
    };
    assert_eq!(with(28, 5), Err(SaveError::Compressed("zstd")));
    assert_eq!(with(16, 0x0200_0000), Err(SaveError::Version(0x0200_0000)));
    assert_eq!(with(20, u32::MAX), Err(SaveError::Damaged("length of XML and cookie")));
    assert_eq!(with(32, u32::MAX), Err(SaveError::Damaged("offset of the cookie")));
    let partial = [b"LibvirtQemudPart", &bytes[16..]].concat();
    assert_eq!(SaveHead::decode(&partial), Err(SaveError::Partial));
    assert_eq!(SaveHead::decode(b"QEVM............"), Err(SaveError::NotSaved));
    let error = read(Path::new("/proc/self/status"), Path::new("/nowhere/image")).unwrap_err();
    assert!(matches!(error, QemuError::Saved { .. } | QemuError::Io { .. }), "{error}");
}
