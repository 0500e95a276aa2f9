//! Round trips, limits, and damage.

use super::*;
use crate::{BlockId, VERSION};
use proptest::prelude::*;

fn offer() -> ToHost {
    let vm = VmOffer { vm: 0, name: "a".into(), file_len: 4097, page_count: 2, content_pages: 1 };
    ToHost::Offer(Offer {
        version: VERSION,
        session: 1,
        transfer: "t".into(),
        host: "h1".into(),
        symbol_size_max: 1424,
        multicast_port: 7700,
        ipv6: false,
        vms: vec![vm],
        guests: vec![guest()],
        peers: vec![Peer { name: "h2".into(), address: ([10, 0, 0, 2], 47078).into() }],
        circles: vec![Circle { id: 1, peers: vec![0] }],
    })
}

fn guest() -> GuestOffer {
    let state = AttachmentOffer { name: "state".into(), len: 9, digest: [3; 32] };
    let clones = vec![CloneOffer { clone: 7, name: "a-7".into() }];
    GuestOffer {
        vm: 0,
        kind: "microvm".into(),
        fingerprint: "v1".into(),
        attachments: vec![state],
        clones,
        working_set: 3,
        paging: Paging { around: 16, working_set: true, wait_ms: 250 },
        leaves: Some(LeaveOffer { whole: true, outline: vec![1, 2, 3] }),
    }
}

fn want() -> ToSender {
    let ahead = vec![PageRange { first: 5, count: 16 }];
    ToSender::Want(Want { vm: 0, pages: vec![4, 900], ahead })
}

fn report() -> ToSender {
    ToSender::Report(Report {
        seq: 9,
        received: vec![(1, 2)],
        done: vec![BlockRange { first: 3, count: 4 }],
        deficits: vec![Deficit { block: 5, missing: 1 << 127 | 6, cauchy: 7, raptorq: 8 }],
    })
}

#[test]
fn round_trips_and_rejects_trailing_bytes() {
    let mut frame = offer().encode();
    assert_eq!(ToHost::decode(&frame), Ok(offer()));
    frame.push(0);
    assert_eq!(ToHost::decode(&frame), Err(ControlError::Malformed(frame.len())));
    for message in [report(), want()] {
        assert_eq!(ToSender::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn limits_are_checked_by_name() {
    let long = ToHost::Cancel { reason: "x".repeat(limits::REASON_BYTES_MAX + 1) };
    let error = ToHost::decode(&long.encode()).expect_err("too long");
    assert!(matches!(error, ControlError::Limit { field: "reason", .. }), "{error}");
    let blocks = vec![(limits::BLOCK_BYTES_MAX + 1, [0; 32])];
    let announce = ToHost::Announce(Announce { first_block: 0, circle: 0, blocks });
    assert!(ToHost::decode(&announce.encode()).is_err());
    let ids_end =
        ToHost::Announce(Announce { first_block: u64::MAX, circle: 0, blocks: vec![(8, [0; 32]); 2] });
    assert!(matches!(ToHost::decode(&ids_end.encode()), Err(ControlError::Limit { field: "block id", .. })));
    // Few bytes that would keep a peer busy for minutes.
    let range = BlockRange { first: 0, count: 1 << 22 };
    let many = ToHost::Through(Through { seq: 1, sent: vec![], blocks: vec![range; 2] });
    let error = ToHost::decode(&many.encode()).expect_err("too many");
    assert!(matches!(error, ControlError::Limit { field: "blocks in ranges", .. }), "{error}");
    let ahead = vec![PageRange { first: 0, count: 1 << 31 }; 2];
    let greedy = ToSender::Want(Want { vm: 0, pages: vec![], ahead });
    let error = ToSender::decode(&greedy.encode()).expect_err("too many");
    assert!(matches!(error, ControlError::Limit { field: "pages ahead", .. }), "{error}");
    let mut huge = guest();
    huge.attachments[0].len = u32::MAX;
    let ToHost::Offer(mut offered) = offer() else { unreachable!("an offer") };
    offered.guests = vec![huge];
    let error = ToHost::decode(&ToHost::Offer(offered).encode()).expect_err("too long");
    assert!(matches!(error, ControlError::Limit { field: "attachment length", .. }), "{error}");
    let ToHost::Offer(mut offered) = offer() else { unreachable!("an offer") };
    offered.circles[0].peers = vec![1];
    let error = ToHost::decode(&ToHost::Offer(offered).encode()).expect_err("no such peer");
    assert!(matches!(error, ControlError::Limit { field: "number of a peer", .. }), "{error}");
    assert_eq!(reason(&"é".repeat(600)).len(), limits::REASON_BYTES_MAX);
}

#[test]
fn ranges_are_fewest() {
    let ids = [1, 2, 3, 7, 9, 10].map(BlockId);
    let ranged = ranges(ids);
    assert_eq!(ranged.iter().map(|r| (r.first, r.count)).collect::<Vec<_>>(), [(1, 3), (7, 1), (9, 2)]);
    assert!(ranged.iter().flat_map(|r| r.ids()).eq(ids));
}

proptest! {
    #[test]
    fn damaged_frames_never_panic(flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        for frame in [offer().encode(), report().encode(), want().encode()] {
            let mut damaged = frame;
            for (at, value) in &flips {
                let at = usize::from(*at) % damaged.len();
                damaged[at] = *value;
            }
            let _ = ToHost::decode(&damaged);
            let _ = ToSender::decode(&damaged);
        }
    }
}
