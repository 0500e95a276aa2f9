//! Whole transfers whose frames are tampered with on the way. Images end byte-identical or unfinished, never wrong.

use crate::mutate::{Rng, mutate};
use crate::world::{Frame, Host, World, verify};
use std::time::Duration;
use wire::datagram::{HEADER_BYTES, OVERHEAD_BYTES, parse};
use wire::seal::{ChannelSecret, Opener, Sealer};

/// Fewer rounds without optimisation.
fn rounds(count: u64) -> u64 {
    if cfg!(debug_assertions) { count.div_ceil(10) } else { count }
}

/// What went over the network in a transfer that lost some datagrams, so that repair is in it.
fn capture() -> (World, Vec<Frame>) {
    let (mut world, mut captured, mut rng) = (World::new(), Vec::new(), Rng(1));
    world.run(&mut |frame| {
        let lost = matches!(frame, Frame::Datagram(..)) && rng.permille(80);
        if lost {
            return Vec::new();
        }
        captured.push(frame.clone());
        vec![frame]
    });
    (0..2).for_each(|host| world.assert_complete(host));
    assert!(world.sender.stats().blocks_repaired > 0, "{:?}", world.sender.stats());
    (world, captured)
}

fn datagrams(captured: &[Frame]) -> impl Iterator<Item = &Vec<u8>> {
    captured.iter().filter_map(|frame| match frame {
        Frame::Datagram(_, bytes) => Some(bytes),
        _ => None,
    })
}

#[test]
fn a_key_of_another_channel_opens_nothing() {
    let (world, captured) = capture();
    let opens = |secret: &ChannelSecret, bytes: &[u8]| {
        let view = parse(bytes).expect("captured");
        Opener::new(secret).open(&view, &mut vec![0; view.symbol.len()]).is_ok()
    };
    let mut tried = 0;
    for bytes in datagrams(&captured) {
        for own in &world.channels {
            let channel = parse(bytes).expect("captured").header.channel;
            assert_eq!(
                opens(&own.secret, bytes),
                own.id == channel,
                "{channel:?} under the key of {:?}",
                own.id
            );
            // Nor by saying that it is the other channel's, nor with its salt.
            if own.id != channel {
                let mut disguised = bytes.clone();
                disguised[4..8].copy_from_slice(&own.id.0.to_le_bytes());
                let other = world.channels.iter().find(|other| other.id == channel).expect("known");
                let mixed = ChannelSecret { key: own.secret.key, salt: other.secret.salt };
                assert!(!opens(&own.secret, &disguised) && !opens(&other.secret, &disguised));
                assert!(!opens(&mixed, bytes) && !opens(&mixed, &disguised));
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn a_mutated_datagram_never_opens() {
    let (world, captured) = capture();
    let all: Vec<&Vec<u8>> = datagrams(&captured).collect();
    let openers: Vec<Opener> = world.channels.iter().map(|channel| Opener::new(&channel.secret)).collect();
    let mut rng = Rng(2);
    let (mut sound, mut symbol) = (0, vec![0; 1 << 14]);
    for _ in 0..rounds(200_000) {
        let mut bytes = all[rng.below(all.len())].clone();
        let other = all[rng.below(all.len())];
        mutate(&mut rng, &mut bytes, other);
        if all.contains(&&bytes) {
            continue;
        }
        let Ok(view) = parse(&bytes) else { continue };
        sound += 1;
        for opener in &openers {
            assert!(opener.open(&view, &mut symbol[..view.symbol.len()]).is_err(), "{:?}", view.header);
        }
    }
    assert!(sound > 1_000, "{sound}");
}

#[test]
fn mutated_datagrams_are_lost_datagrams() {
    for seed in 0..rounds(30) {
        let (mut world, mut rng, mut before) = (World::new(), Rng(seed), Vec::new());
        world.run(&mut |frame| {
            let Frame::Datagram(host, bytes) = &frame else { return vec![frame] };
            let mut arrives = vec![frame.clone()];
            if rng.permille(100) {
                let mut mutated = bytes.clone();
                mutate(&mut rng, &mut mutated, &before);
                // In place of the genuine one, before it, or after.
                let at = rng.below(3);
                arrives.insert(at & 1, Frame::Datagram(*host, mutated));
                if at == 2 {
                    arrives.truncate(1);
                }
            }
            before.clone_from(bytes);
            arrives
        });
        (0..2).for_each(|host| world.assert_complete(host));
    }
}

/// A member knows the key: what it seals opens. The digest tells, repair and catch-up do the rest.
#[test]
fn what_a_member_forges_costs_repairs_and_nothing_else() {
    for seed in 0..rounds(30) {
        let (mut world, mut rng) = (World::new(), Rng(seed));
        let mut sealers: Vec<(u32, Sealer)> =
            world.channels.iter().map(|channel| (channel.id.0, Sealer::new(&channel.secret))).collect();
        let mut forged = 0;
        world.run(&mut |frame| {
            let Frame::Datagram(host, bytes) = &frame else { return vec![frame] };
            if !rng.permille(60) {
                return vec![frame];
            }
            let mut header = parse(bytes).expect("genuine").header;
            // Another symbol, another block or another length under the right key.
            match rng.below(4) {
                0 => header.esi = rng.below(300).try_into().expect("small"),
                1 => header.block.0 = rng.next() % 40,
                2 => {
                    header.block_len =
                        header.block_len.saturating_add(rng.below(9).try_into().expect("small"))
                }
                _ => {}
            }
            header.scheme = rng.byte() % 4;
            let mut wrong = vec![0; bytes.len()];
            let symbol: Vec<u8> = (0..bytes.len() - OVERHEAD_BYTES).map(|_| rng.byte()).collect();
            let sealer = sealers.iter_mut().find(|(id, _)| *id == header.channel.0).expect("known");
            sealer.1.seal(header, &symbol, &mut wrong);
            forged += 1;
            vec![Frame::Datagram(*host, wrong), frame]
        });
        (0..2).for_each(|host| world.assert_complete(host));
        let mismatches: u64 = world.hosts.iter().map(|host| host.session.stats().digest_mismatches).sum();
        assert!(mismatches > 0, "none of {forged} forged symbols got into a block");
    }
}

/// Captured traffic, replayed to a fresh host with everything wrong that can be, control frames too. (An `Offer` is not
/// among them: it says what the images are.)
#[test]
fn replayed_and_mutated_traffic_ends_right_or_unfinished() {
    let (world, captured) = capture();
    let mut finished = [0; 3];
    for seed in 0..rounds(400) {
        let host = usize::try_from(seed % 2).expect("small");
        let mut rng = Rng(seed);
        let (on_datagrams, on_control) = ([5, 50, 200][rng.below(3)], [0, 0, 5, 50][rng.below(4)]);
        // The genuine frame comes as well, or not.
        let beside = rng.below(2) == 0;
        let mut replay = Host::new(&world.prepared, host);
        let mut held_back = None;
        for (at, frame) in captured.iter().enumerate() {
            let mut frame = match frame {
                Frame::Datagram(to, _) | Frame::ToHost(to, _) if *to == host => frame.clone(),
                _ => continue,
            };
            let genuine = frame.clone();
            let other = match &captured[rng.below(captured.len())] {
                Frame::Datagram(_, bytes) | Frame::ToHost(_, bytes) | Frame::ToSender(_, bytes) => bytes,
            };
            match &mut frame {
                Frame::Datagram(_, bytes) if rng.permille(on_datagrams) => match rng.below(4) {
                    0 => held_back = Some(frame.clone()),
                    // The key of another channel, or a header on another body.
                    1 if bytes.len() >= HEADER_BYTES && other.len() >= HEADER_BYTES => {
                        bytes[..HEADER_BYTES].copy_from_slice(&other[..HEADER_BYTES]);
                    }
                    _ => mutate(&mut rng, bytes, other),
                },
                Frame::ToHost(_, bytes) if rng.permille(on_control) => mutate(&mut rng, bytes, other),
                _ => {}
            }
            replay.take(&frame);
            if beside && matches!(genuine, Frame::Datagram(..)) && frame != genuine {
                replay.take(&genuine);
            }
            if rng.permille(20)
                && let Some(late) = held_back.take()
            {
                replay.take(&late);
                replay.take(&late);
            }
            if replay.gave_up {
                break;
            }
            replay.pass(Duration::from_micros(at as u64 * 100));
        }
        finished[verify(&world.prepared, replay.root.path())] += 1;
    }
    println!("hosts that finished none, one, both images: {finished:?}");
    assert!(finished[0] > 0 && finished[2] > finished.iter().sum::<i32>() / 5, "{finished:?}");
}

/// A host that says what it likes harms itself only.
#[test]
fn a_hostile_host_does_not_harm_the_others() {
    for seed in 0..rounds(60) {
        let (mut world, mut rng, mut before) = (World::new(), Rng(seed), vec![0; 8]);
        world.run(&mut |frame| {
            let Frame::ToSender(1, bytes) = &frame else { return vec![frame] };
            let mut said = bytes.clone();
            if rng.permille(300) {
                mutate(&mut rng, &mut said, &before);
            }
            before.clone_from(bytes);
            // A frame that is no message ends its connection; most rounds are to get further.
            let sound = <wire::control::ToSender as wire::control::Message>::decode(&said).is_ok();
            vec![Frame::ToSender(1, if sound || rng.permille(20) { said } else { bytes.clone() })]
        });
        world.assert_complete(0);
        verify(&world.prepared, world.hosts[1].root.path());
    }
}
