//! What a receiver makes of a sender, or of members of a group, that forge.

use receiver::session::{Action, ProtocolError, Session, SessionConfig};
use std::time::Duration;
use wire::control::{Announce, BlockRange, Join, Report, Through, ToHost, ToSender};
use wire::datagram::{Header, OVERHEAD_BYTES};
use wire::seal::{ChannelSecret, Sealer};
use wire::{BlockId, ChannelId, limits};

const SYMBOL: usize = 64;
const CHANNEL: u32 = 7;

fn secret() -> ChannelSecret {
    ChannelSecret { key: [5; 32], salt: [6; 4] }
}

/// A session that is a member of a channel; what it says is in the actions.
fn session() -> Session {
    let mut session = Session::new(SessionConfig::new(64, 1));
    let secret = secret();
    let join = Join { channel: CHANNEL, key: secret.key, salt: secret.salt, group: None };
    hear(&mut session, 0, ToHost::Join(join)).expect("a join");
    said(&mut session);
    session
}

fn hear(session: &mut Session, ms: u64, message: ToHost) -> Result<(), ProtocolError> {
    session.handle_control(Duration::from_millis(ms), message, &mut |_| None)
}

fn announce(session: &mut Session, first_block: u64, count: usize) -> Result<(), ProtocolError> {
    for at in (0..count).step_by(limits::ANNOUNCED_MAX) {
        let blocks = vec![(640, [9; 32]); (count - at).min(limits::ANNOUNCED_MAX)];
        hear(
            session,
            0,
            ToHost::Announce(Announce { first_block: first_block + at as u64, circle: 0, blocks }),
        )?;
    }
    Ok(())
}

fn said(session: &mut Session) -> Vec<Report> {
    let actions = std::iter::from_fn(|| session.poll_action());
    actions
        .filter_map(|action| match action {
            Action::Send(ToSender::Report(report)) => Some(report),
            _ => None,
        })
        .collect()
}

fn datagram(sealer: &mut Sealer, block: u64, esi: u32) -> Vec<u8> {
    let mut out = vec![0; SYMBOL + OVERHEAD_BYTES];
    let header = Header {
        scheme: 0,
        channel: ChannelId(CHANNEL),
        block: BlockId(block),
        esi,
        block_len: 640,
        counter: 0,
    };
    sealer.seal(header, &[1; SYMBOL], &mut out);
    out
}

fn through(seq: u64, sent: u64, first: u64, count: u32) -> ToHost {
    ToHost::Through(Through { seq, sent: vec![(CHANNEL, sent)], blocks: vec![BlockRange { first, count }] })
}

/// More blocks lack something than one report can name: all are named, and the question is answered by the last.
#[test]
fn every_deficit_is_told_however_many() {
    let mut session = session();
    let count = 3 * limits::DEFICITS_MAX + 5;
    announce(&mut session, 0, count).expect("announcements");
    hear(&mut session, 0, through(1, 0, 0, u32::try_from(count).expect("small"))).expect("a question");
    session.handle_drained(Duration::from_millis(50));
    let reports = said(&mut session);
    let (last, before) = reports.split_last().expect("an answer");
    assert!(before.iter().all(|report| report.seq == 0) && last.seq == 1);
    assert!(reports.iter().all(|report| report.deficits.len() <= limits::DEFICITS_MAX));
    let named: std::collections::BTreeSet<u64> =
        reports.iter().flat_map(|report| &report.deficits).map(|deficit| deficit.block).collect();
    assert_eq!(named.len(), count);
}

/// An outsider knows everything but the key. Its datagrams for blocks that are done, or being checked, count nothing.
#[test]
fn what_does_not_open_is_not_received() {
    let mut session = session();
    announce(&mut session, 0, 2).expect("announcements");
    let mut sealer = Sealer::new(&secret());
    for esi in 0..10 {
        session.handle_datagram(&datagram(&mut sealer, 0, esi));
    }
    let checking =
        std::iter::from_fn(|| session.poll_action()).any(|action| matches!(action, Action::Check(_)));
    assert!(checking, "the block is complete");
    let mut forger = Sealer::new(&ChannelSecret { key: [1; 32], salt: [6; 4] });
    for esi in 0..50 {
        session.handle_datagram(&datagram(&mut forger, 0, esi));
    }
    assert_eq!((session.stats().rejected, session.stats().datagrams), (50, 10));
    // The sender sent 20: ten are lost, whatever was forged.
    hear(&mut session, 0, through(1, 20, 1, 1)).expect("a question");
    session.handle_drained(Duration::from_millis(50));
    let report = said(&mut session).pop().expect("an answer");
    assert_eq!(report.received, [(CHANNEL, 10)]);
}

/// A member seals datagrams of blocks that are never announced, as many as are kept; early ones of the sender still are.
#[test]
fn forged_early_blocks_do_not_keep_genuine_ones_out() {
    let mut session = session();
    let mut sealer = Sealer::new(&secret());
    for block in 1_000..1_200 {
        session.handle_datagram(&datagram(&mut sealer, block, 0));
    }
    assert!(session.in_flight_bytes() <= 64 * 640);
    for esi in 0..10 {
        session.handle_datagram(&datagram(&mut sealer, 3, esi));
    }
    announce(&mut session, 0, 8).expect("announcements");
    let checking = std::iter::from_fn(|| session.poll_action())
        .any(|action| matches!(action, Action::Check(job) if job.block == BlockId(3)));
    assert!(checking, "it came whole before its announcement");
    // Far beyond everything announced: not even tried.
    let kept = session.in_flight_bytes();
    session.handle_datagram(&datagram(&mut sealer, 1 << 20, 0));
    assert_eq!(session.in_flight_bytes(), kept);
}

#[test]
fn a_block_announced_twice_and_differently_ends_the_connection() {
    let mut session = session();
    announce(&mut session, 0, 3).expect("announcements");
    let mut sealer = Sealer::new(&secret());
    for esi in 0..10 {
        session.handle_datagram(&datagram(&mut sealer, 0, esi));
    }
    announce(&mut session, 0, 3).expect("the same again, as after a lost connection");
    let longer = Announce { first_block: 0, circle: 0, blocks: vec![(700, [9; 32])] };
    assert_eq!(hear(&mut session, 1, ToHost::Announce(longer)), Err(ProtocolError::Changed(0)));
}

#[test]
fn questions_without_end_end_the_connection() {
    let mut session = session();
    announce(&mut session, 0, 1).expect("announcements");
    let asked = (1..10_000).map(|seq| hear(&mut session, 0, through(seq, 1_000_000, 0, 1)));
    let error = asked.filter_map(Result::err).next().expect("an end");
    assert_eq!(error, ProtocolError::Questions);
}

/// The group brought it meanwhile; its sender hears so again, and does not wait for ever.
#[test]
fn a_block_sent_whole_that_is_done_is_told_done_again() {
    let mut session = session();
    let mut held = |_: &wire::Digest| Some(Vec::new());
    let announce = ToHost::Announce(Announce { first_block: 0, circle: 0, blocks: vec![(640, [9; 32])] });
    session.handle_control(Duration::ZERO, announce, &mut held).expect("an announcement of what is held");
    session.handle_timeout(Duration::from_millis(15));
    let told = |session: &mut Session| said(session).iter().map(|report| report.done.len()).sum::<usize>();
    assert_eq!(told(&mut session), 1);
    hear(&mut session, 16, ToHost::BlockData { block: 0, bytes: vec![0; 640] }).expect("a block");
    session.handle_timeout(Duration::from_millis(40));
    assert_eq!(told(&mut session), 1);
}
