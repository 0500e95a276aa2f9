//! The peers over real, small transfers.

use std::time::Duration;

use lab::hosts::{Lab, LabOptions, Loss, lab_for_test};
use lab::memory::Fleet;
use lab::peers::{Peer, PeerError, PeerOptions, Stream};

#[test]
fn every_peer_carries_a_file_to_every_host() {
    if !lab_for_test("every_peer_carries_a_file_to_every_host") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let fleet = Fleet { vms: 1, pages: 1_024, ..Fleet::default() };
    let file = fleet.write_images(directory.path()).expect("an image").remove(0);
    let lab = Lab::new(LabOptions::default()).expect("a lab");
    let options = PeerOptions {
        directory: directory.path().to_owned(),
        timeout: Duration::from_secs(20),
        lossy: false,
    };
    let dropped = Peer::Tcp(Stream { sendfile: true, keep: false });
    for peer in Peer::ALL.into_iter().chain([dropped]) {
        let result = match peer.run(&lab, &file, 2, &options) {
            Err(error @ PeerError::Missing { .. }) => {
                let required = std::env::var("SCATTER_REQUIRE_LAB").is_ok_and(|value| value == "1");
                assert!(!required, "{error}");
                eprintln!("skipped {}: {error}", peer.name());
                continue;
            }
            result => result.expect("it runs"),
        };
        assert!(result.completed && result.all_ok(), "{}: {result:?}", peer.name());
        assert_eq!((result.bytes, result.per_host_ok.len()), (4 << 20, 2));
        let copies = if matches!(peer, Peer::Tcp(_)) { 2 } else { 1 };
        assert!(result.data <= result.wall && result.data > Duration::ZERO, "{}: {result:?}", peer.name());
        // Twice at most: udpcast and UFTP send again what their receivers' buffers did not hold.
        let (link, least) = (result.link_bytes, copies * result.bytes);
        assert!((least..2 * least).contains(&link), "{}: {link} bytes on the link", peer.name());
    }
    let left = std::fs::read_dir(directory.path()).expect("there").count();
    assert_eq!(left, 1, "only the file that was sent is left");
    assert!(matches!(dropped.run(&lab, &file, 3, &options), Err(PeerError::Hosts { wanted: 3, there: 2 })));
}

#[test]
fn a_peer_that_gets_nowhere_is_ended() {
    if !lab_for_test("a_peer_that_gets_nowhere_is_ended") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("file");
    std::fs::write(&file, vec![1; 1 << 20]).expect("written");
    let lab = Lab::new(LabOptions { hosts: 2, ..LabOptions::default() }).expect("a lab");
    lab.loss(1, Loss::random(1_000).of(lab::hosts::Scope::DatagramsAndStreams)).expect("nothing arrives");
    let options =
        PeerOptions { directory: directory.path().to_owned(), timeout: Duration::from_secs(1), lossy: true };
    for peer in [Peer::Udpcast, Peer::Tcp(Stream { sendfile: false, keep: true })] {
        match peer.run(&lab, &file, 1, &options) {
            Err(error @ PeerError::Missing { .. }) => eprintln!("skipped {}: {error}", peer.name()),
            result => {
                let result = result.expect("it runs");
                assert!(!result.completed && !result.all_ok(), "{}: {result:?}", peer.name());
                assert!(result.wall < Duration::from_secs(10), "{result:?}");
            }
        }
    }
}
