//! Pages that hosts hold already are not sent, and the plan foresees what is left.

use crate::fleet::{Fleet, name};
use crate::images::{Image, float, guests, mb};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const TARGETS: u16 = 3;
const PAGE_BYTES: usize = 4096;
/// How far bytes on a host's link may be off, in either direction.
const BYTES_OFF_MAX: f64 = 0.05;

fn read(fleet: &Fleet, name: &str) -> Value {
    let text = fs::read_to_string(fleet.dir().join(name)).expect("written");
    serde_json::from_str(&text).expect("JSON")
}

/// A copy of an image as it was before: every `every`th page of it is another.
fn older(image: &Image, every: usize, path: &Path) {
    let mut bytes = fs::read(&image.path).expect("an image");
    for (number, page) in bytes.chunks_mut(PAGE_BYTES).enumerate().filter(|(number, _)| number % every == 0) {
        page.iter_mut().zip(0u8..).for_each(|(byte, at)| *byte = byte.wrapping_add(at | 1));
        page[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    fs::write(path, bytes).expect("written");
}

fn images_of(fleet: &Fleet, host: u16) -> PathBuf {
    let dir = fleet.dir().join(format!("images-{}", name(host)));
    fs::create_dir_all(&dir).expect("made");
    dir
}

/// Sends the plan to receivers with empty stores; how many bytes each host's link carried.
fn transfer(fleet: &mut Fleet, image: &Image) -> (Vec<u64>, String) {
    fleet.stop_receivers();
    for host in fleet.numbers() {
        let dir = images_of(fleet, host);
        fleet.start_measurable(host, &dir);
    }
    let links = |fleet: &Fleet| -> Vec<u64> { fleet.numbers().map(|host| fleet.downlink(host)).collect() };
    let before = links(fleet);
    let path = fleet.dir().join("plan.json");
    let sent = fleet.send(&path, &["--rate", "200M", "--encoding", "zstd:1"]).finish().ok();
    let carried = links(fleet).iter().zip(&before).map(|(after, before)| after - before).collect();
    fleet.check_images(std::slice::from_ref(image), fleet.numbers());
    (carried, sent.said)
}

#[test]
fn pages_that_hosts_hold_are_not_sent() {
    let Some(mut fleet) = Fleet::of("pages_that_hosts_hold_are_not_sent", TARGETS) else { return };
    let images = guests(2, fleet.dir());
    let image = Image { name: "new".into(), path: images[0].path.clone() };
    // The first host has an older image of the VM, the second one of another VM, the third nothing.
    older(&image, 5, &images_of(&fleet, 1).join("older.raw"));
    fs::copy(&images[1].path, images_of(&fleet, 2).join("another.raw")).expect("copied");
    let vms = [(&image, json!({"clones": TARGETS}))];
    let inventory = fleet.inventory(&vms, fleet.numbers(), 1 << 20);
    fs::write(fleet.dir().join("inventory.json"), inventory.to_string()).expect("written");
    for host in fleet.numbers() {
        let dir = images_of(&fleet, host);
        fleet.start_measurable(host, &dir);
    }
    let asked =
        ["measure", "--hosts", "--resident", "inventory.json", "--keys", "keys/src", "-o", "measured.json"];
    fleet.scatter_on(0, &asked);
    fleet.scatter(&["plan", "inventory.json", "--signatures", "measured.json", "-o", "plan.json"]);
    let plan = read(&fleet, "plan.json");
    assert!(plan["resident"].as_array().expect("hosts").contains(&json!("h1")), "{}", plan["resident"]);
    let (carried, said) = transfer(&mut fleet, &image);
    let foreseen =
        |at: usize| plan["predicted"]["links"][at]["network_bytes"].as_u64().expect("a prediction");
    for (at, carried) in (1..).zip(&carried) {
        let off = float(*carried) / float(foreseen(at)) - 1.0;
        println!(
            "  link of h{at}: {:.2} MB, foreseen {:.2} ({:+.1} %)",
            mb(*carried),
            mb(foreseen(at)),
            off * 100.0
        );
        assert!(off.abs() <= BYTES_OFF_MAX, "{said}");
    }
    assert!(carried[0] * 2 < carried[2], "h1 had four pages in five already: {carried:?}\n{said}");

    // The image that the plan counts on is another by now; the VM is sent whole all the same, and is what it should be.
    older(&image, 2, &images_of(&fleet, 1).join("older.raw"));
    fs::remove_file(images_of(&fleet, 2).join("another.raw")).expect("removed");
    let (later, said) = transfer(&mut fleet, &image);
    println!("  after the images changed: {:.2}, {:.2}, {:.2} MB", mb(later[0]), mb(later[1]), mb(later[2]));
    assert!(later[0] > carried[0] * 3 / 2, "{said}");
    assert!(float(later[1]) > float(later[2]) * 0.95, "h2 has nothing any more:\n{said}");
}
