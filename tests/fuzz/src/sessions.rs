//! The sans-IO sessions, fed with sequences of frames such as no honest peer would send.

use fec::CostModel;
use receiver::check::{Checked, Outcome};
use receiver::session::{Action, Session as Receiving, SessionConfig as ReceivingConfig};
use sender::rate::RateConfig;
use sender::session::{ChannelSpec, SegmentSpec, Session as Sending, SessionConfig};
use std::time::Duration;
use wire::control::{Message, ToHost, ToSender};
use wire::{BlockId, ChannelId};

const SYMBOL_SIZE: u16 = 512;
const STEP: Duration = Duration::from_millis(3);
const FRAMES_MAX: usize = 64;

/// Cuts the input into frames: a byte that says what, two for the length, and the frame.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let next = move || {
        let (&[kind, low, high], rest) = bytes.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (frame, rest) = rest.split_at(len);
        bytes = rest;
        Some((kind, frame))
    };
    std::iter::from_fn(next).take(FRAMES_MAX)
}

/// Puts frames together as [`receiving`] and [`sending`] take them apart.
#[must_use]
pub fn join_frames<'a>(frames: impl IntoIterator<Item = (u8, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, frame) in frames {
        out.push(kind);
        out.extend(u16::try_from(frame.len()).expect("a short frame").to_le_bytes());
        out.extend(frame);
    }
    out
}

/// A receiving session: control frames (even kinds) and datagrams (odd ones). Bounds hold, and no block is handed out
/// for placing without a digest.
pub fn receiving(bytes: &[u8]) {
    let mut config = ReceivingConfig::new(SYMBOL_SIZE, 1);
    config.in_flight_bytes_max = 1 << 20;
    config.unannounced_blocks_max = 4;
    let bound = config.in_flight_bytes_max + u64::from(wire::limits::BLOCK_BYTES_MAX);
    let mut session = Receiving::new(config);
    let mut now = Duration::ZERO;
    for (kind, frame) in frames(bytes) {
        now += STEP;
        if kind & 1 == 1 {
            session.handle_datagram(frame);
        } else if let Ok(message) = ToHost::decode(frame) {
            let mut held = |digest: &wire::Digest| (digest[0] == 0x55).then(|| vec![0]);
            if session.handle_control(now, message, &mut held).is_err() {
                return;
            }
        }
        session.handle_drained(now);
        session.handle_timeout(now);
        while let Some(action) = session.poll_action() {
            match action {
                Action::Check(job) => {
                    let outcome = match kind >> 1 & 3 {
                        0 => Outcome::NeedMore,
                        1 => Outcome::Mismatch,
                        2 => Outcome::Failed("as told".into()),
                        _ => continue,
                    };
                    session.handle_checked(now, Checked { block: job.block, outcome, collector: None });
                }
                Action::Join { channel, .. } => session.joined(channel, Ok(())),
                Action::FinishVm(vm) => session.handle_finished(vm),
                Action::AllPlaced => drop(session.all_complete(now, 0, 0)),
                Action::Send(message) => assert_eq!(ToSender::decode(&message.encode()), Ok(message)),
                Action::Leave { .. } | Action::End { .. } => {}
            }
        }
        assert!(session.in_flight_bytes() <= bound, "{} bytes in flight", session.in_flight_bytes());
    }
}

/// A sending session with three hosts, two of which say what the frames hold (the kind's lowest bit tells which). All it
/// says can be decoded, and it never sends what it has not encoded.
pub fn sending(bytes: &[u8]) {
    const HOSTS: usize = 3;
    let mut session = sending_session(HOSTS);
    let mut now = Duration::ZERO;
    for host in 0..HOSTS {
        session.handle_connected(host, now);
    }
    for (kind, frame) in frames(bytes) {
        now += STEP;
        let host = usize::from(kind & 1);
        match (kind, ToSender::decode(frame)) {
            (_, Ok(message)) => session.handle_control(host, message, now),
            (0xf0.., Err(_)) => session.handle_disconnected(host, now),
            (0xe0.., Err(_)) => session.handle_connected(host, now),
            (_, Err(_)) => {}
        }
        drain(&mut session, now);
    }
    assert!(session.stats().window_peak_bytes <= 1 << 20);
}

fn sending_session(hosts: usize) -> Sending {
    let mut config = SessionConfig::new(SYMBOL_SIZE, RateConfig::AUTO);
    config.start_wait_max = STEP;
    let spec = |id: u32, group, hosts| ChannelSpec {
        group,
        hosts,
        id: ChannelId(id),
        secret: super::corpus_secret(),
    };
    let channels = vec![
        spec(7, Some([239, 1, 1, 1].into()), (0..hosts).collect()),
        spec(8, None, vec![0]),
        spec(9, Some([239, 1, 1, 2].into()), vec![0, 1]),
    ];
    let segments: Vec<SegmentSpec> = (0..channels.len())
        .map(|channel| SegmentSpec { channel, expected_bytes: 40_000, circle: 0 })
        .collect();
    let mut session = Sending::new(config, CostModel::default(), hosts, channels, &segments);
    for segment in 0..segments.len() {
        for (len, seed) in [(9_000, 1), (65_536, 2), (1, 3)] {
            session.handle_block(segment, len, [seed; 32]);
        }
        session.handle_segment_encoded(segment);
    }
    session
}

fn drain(session: &mut Sending, now: Duration) {
    session.handle_timeout(now);
    for _ in 0..32 {
        let Some(transmit) = session.poll_transmit(now) else { break };
        assert!(session.block_len(transmit.block).is_some() && transmit.symbols.count() > 0);
    }
    for _ in 0..8 {
        let Some((_, block)) = session.poll_catch_up(now) else { break };
        assert!(session.block_len(block).is_some());
    }
    while let Some(block) = session.poll_recall() {
        session.handle_recalled(block);
    }
    while let Some((_, message)) = session.poll_control() {
        assert_eq!(ToHost::decode(&message.encode()), Ok(message));
    }
    while let Some(BlockId(_)) = session.poll_release() {}
    while session.poll_event().is_some() {}
    assert!(session.is_over() || session.poll_timeout(now).is_some_and(|at| at >= now));
}
