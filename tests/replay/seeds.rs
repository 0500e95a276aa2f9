//! The small corpora: what honest peers send, one of each kind. `SCATTER_WRITE_CORPORA=1 cargo test --test replay` writes
//! them to `tests/corpora`, where libFuzzer finds them; files that a fuzzer found (`found-*`) are kept beside them.

mod qemu;

use crate::targets::{corpus_secret, join_frames};
use pages::block::{BlockParts, ContentRun, Encoding, Scratch, UniformPlacement, encode_block, encode_named};
use pages::{Page, Pfn, UniformRun, VmId};
use qemu::{mapped_ram, qemu};
use wire::control::measure::{Ask, Residents, Tell};
use wire::control::{
    Accept, Announce, Attachment, AttachmentOffer, BlockRange, Circle, CloneOffer, CloneStatus, Deficit,
    EndClones, FaultFigures, Fetch, Fetched, FirstTouched, GuestOffer, GuestReport, GuestState, HostStats,
    HostStatus, HostWord, Join, Message, Offer, PageRange, Paging, Peer, Probe, ProbeResult, RefuseCause,
    Report, SourceWord, Through, ToHost, ToSender, TransferStatus, VmOffer, Want,
};
use wire::datagram::{Header, OVERHEAD_BYTES};
use wire::seal::Sealer;
use wire::{BlockId, ChannelId};

/// Target, name, bytes.
pub(crate) type Seed = (&'static str, String, Vec<u8>);

pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, list: Vec<Vec<u8>>| {
        seeds.extend(
            list.into_iter().enumerate().map(|(index, bytes)| (target, format!("seed-{index:02}"), bytes)),
        );
    };
    add("datagram", datagrams());
    add("to_host", to_host().iter().map(Message::encode).collect());
    add("to_sender", to_sender().iter().map(Message::encode).collect());
    add("receiving", vec![receiving()]);
    add("sending", vec![sending(0), sending(1)]);
    add("block_body", block_bodies());
    add("mapped_ram", vec![mapped_ram(&["mapped-ram"]), mapped_ram(&["mapped-ram", "x-ignore-shared"])]);
    let [streams, answers, states] = qemu();
    add("qemu_stream", streams);
    add("qemu_answer", answers);
    add("qemu_state", states);
    add("collector", collectors());
    add(
        "journal",
        vec![vec![0], vec![2, 200, 0, 0, 7], vec![1, 60, 0, 0, 9], vec![1, 160, 0, 2, 1, 165, 0, 3, 9]],
    );
    add(
        "inventory",
        vec![
            include_bytes!("../../examples/inventory.json").to_vec(),
            include_bytes!("../../examples/inventory-clones.json").to_vec(),
        ],
    );
    add("plan", vec![include_bytes!("../../examples/plan.json").to_vec()]);
    add("signatures", vec![include_bytes!("../../examples/inventory-signatures.json").to_vec()]);
    add("igmp", igmp());
    seeds
}

fn datagrams() -> Vec<Vec<u8>> {
    let mut sealer = Sealer::new(&corpus_secret());
    let shapes = [
        (0, 0, 8, 8),
        (0, 3, 640, 64),
        (2, 10, 640, 64),
        (1, 0xff_ffff, 640, 64),
        (0, 127, 1 << 20, 8192 / 32),
    ];
    let sealed = shapes.map(|(scheme, esi, block_len, size)| {
        let channel = ChannelId(7);
        let header = Header { scheme, channel, block: BlockId(u64::from(esi)), esi, block_len, counter: 0 };
        let mut out = vec![0; size + OVERHEAD_BYTES];
        sealer.seal(header, &vec![0x5a; size], &mut out);
        out
    });
    sealed.to_vec()
}

fn range(first: u64, count: u32) -> BlockRange {
    BlockRange { first, count }
}

fn join() -> ToHost {
    let secret = corpus_secret();
    ToHost::Join(Join { channel: 7, key: secret.key, salt: secret.salt, group: Some([239, 1, 1, 1].into()) })
}

fn guest() -> GuestOffer {
    let state = AttachmentOffer { name: "state".into(), len: 4096, digest: [6; 32] };
    let clones = (0..2).map(|clone| CloneOffer { clone, name: format!("web-2-{clone}") }).collect();
    GuestOffer {
        vm: 1,
        kind: "microvm".into(),
        fingerprint: "x86".into(),
        attachments: vec![state],
        clones,
        working_set: 3,
        paging: Paging { around: 16, working_set: true, wait_ms: 250 },
        leaves: None,
    }
}

fn status() -> HostStatus {
    let clone = CloneStatus {
        name: "c-1".into(),
        starting: false,
        over: false,
        missing_pages: 9,
        words: "tick 4".into(),
    };
    let transfer = TransferStatus {
        transfer: "t".into(),
        sender: Some("src".into()),
        peers: vec!["h2".into()],
        clones: vec![clone],
        more: 0,
    };
    HostStatus { transfers: vec![transfer] }
}

fn to_host() -> Vec<ToHost> {
    let vm = VmOffer { vm: 0, name: "web-1".into(), file_len: 8192, page_count: 2, content_pages: 1 };
    vec![
        ToHost::Offer(Offer {
            version: wire::VERSION,
            session: u64::MAX,
            transfer: "t".into(),
            host: "h1".into(),
            symbol_size_max: 1424,
            multicast_port: 47_077,
            ipv6: false,
            vms: vec![vm.clone(), VmOffer { vm: 1, name: "web-2".into(), ..vm }],
            guests: vec![guest()],
            peers: vec![Peer { name: "h2".into(), address: ([10, 0, 0, 2], 47_078).into() }],
            circles: vec![Circle { id: 1, peers: vec![0] }],
        }),
        join(),
        ToHost::Leave { channel: 7 },
        ToHost::Announce(Announce {
            first_block: 2,
            circle: 1,
            blocks: vec![(640, [1; 32]), (1 << 20, [2; 32])],
        }),
        ToHost::Through(Through { seq: 1, sent: vec![(7, 1000)], blocks: vec![range(0, 3), range(9, 1)] }),
        ToHost::BlockData { block: 2, bytes: vec![9; 64] },
        ToHost::Release,
        ToHost::Cancel { reason: "stopped".into() },
        ToHost::Probe(Probe { group: [239, 1, 1, 9].into(), port: 4, count: 100, listen_ms: 500 }),
        ToHost::Attachment(Attachment { vm: 1, index: 0, last: true, bytes: vec![7; 40] }),
        ToHost::Pages { body: vec![5; 70] },
        ToHost::Status,
        ToHost::FirstTouched(FirstTouched { vm: 1, pages: vec![9, 0, 1] }),
        ToHost::Fetch(Fetch { transfer: "t".into(), digests: vec![[1; 32], [2; 32]] }),
        ToHost::Supply { block: 2, body: vec![4; 50] },
        ToHost::Measure(Ask::Residents(Residents {
            version: 2,
            transfer: "t".into(),
            key: [7; 32],
            images: vec![("vm1".into(), 3)],
        })),
        ToHost::HandOver {
            vm: 1,
            word: SourceWord::Stale { epoch: 1, ranges: vec![PageRange { first: 3, count: 2 }], last: true },
        },
        ToHost::HandOver { vm: 1, word: SourceWord::Decision },
        ToHost::EndClones(EndClones { transfer: "t".into(), reason: "cancelled".into() }),
    ]
}

fn to_sender() -> Vec<ToSender> {
    let deficit = Deficit { block: 1, missing: u128::MAX, cauchy: 1, raptorq: 300 };
    vec![
        ToSender::Accept(Accept { version: 1, unicast: ([10, 0, 0, 1], 9).into(), credit_bytes: 1 << 24 }),
        ToSender::Refuse { cause: RefuseCause::Exists, reason: "vm1.ram is there".into() },
        ToSender::Held { digests: vec![[1; 32], [2; 32]] },
        ToSender::Joined { channel: 7 },
        ToSender::JoinFailed { channel: 7, reason: "no".into() },
        ToSender::Report(Report {
            seq: 3,
            received: vec![(7, 900)],
            done: vec![range(0, 1)],
            deficits: vec![deficit, Deficit { block: 2, missing: 5, cauchy: 0, raptorq: 0 }],
        }),
        ToSender::VmComplete { vm: 1 },
        ToSender::AllComplete(HostStats { datagrams: 1 << 40, cpu_us: 7, ..HostStats::default() }),
        ToSender::Failed { reason: "disk full".into() },
        ToSender::ProbeReady,
        ToSender::ProbeResult(ProbeResult { intact: 99, interface: "eth0".into(), ..ProbeResult::default() }),
        ToSender::Want(Want { vm: 1, pages: vec![0, 1], ahead: vec![PageRange { first: 1, count: 1 }] }),
        ToSender::Guest(GuestReport {
            words: "private memory".into(),
            clone: 1,
            state: GuestState::Failed { reason: "no KVM".into() },
            faults: FaultFigures { here: 5, waited_p99_us: 900, ..FaultFigures::default() },
        }),
        ToSender::Status(status()),
        ToSender::Fetched(Fetched { digest: [4; 32], bytes: vec![8; 50] }),
        ToSender::Lacks { block: 2 },
        ToSender::Measured(Tell::Names(vec![[1; 16], [2; 16]])),
        ToSender::HandOver { vm: 1, word: HostWord::Ready },
        ToSender::HandOver { vm: 1, word: HostWord::Gone { ran: true, reason: "it ended".into() } },
    ]
}

/// A channel, two blocks of which one is held, a block by datagrams, one by the control channel, the end.
fn receiving() -> Vec<u8> {
    let mut sealer = Sealer::new(&corpus_secret());
    let shape = fec::BlockShape::for_len(1000, 512).expect("a shape");
    let datagrams: Vec<Vec<u8>> = (0..shape.symbols())
        .map(|esi| {
            let header = Header {
                scheme: 0,
                channel: ChannelId(7),
                block: BlockId(1),
                esi,
                block_len: shape.len,
                counter: 0,
            };
            let mut out = vec![0; shape.symbol_len() + OVERHEAD_BYTES];
            sealer.seal(header, &vec![1; shape.symbol_len()], &mut out);
            out
        })
        .collect();
    let blocks = vec![(700, [0x55; 32]), (1000, [1; 32]), (300, [2; 32])];
    let control = [
        join(),
        ToHost::Announce(Announce { first_block: 0, circle: 0, blocks }),
        ToHost::Through(Through { seq: 1, sent: vec![(7, 2)], blocks: vec![range(0, 3)] }),
        ToHost::BlockData { block: 2, bytes: vec![3; 300] },
        ToHost::Leave { channel: 7 },
        ToHost::Release,
    ];
    let control: Vec<Vec<u8>> = control.iter().map(Message::encode).collect();
    let early = datagrams.iter().map(|bytes| (3, bytes.as_slice()));
    let frames = control[..2].iter().map(|bytes| (0, bytes.as_slice()));
    join_frames(frames.chain(early).chain(control[2..].iter().map(|bytes| (2, bytes.as_slice()))))
}

fn sending(host: u8) -> Vec<u8> {
    let list: Vec<Vec<u8>> = to_sender()
        .iter()
        .filter(|m| !matches!(m, ToSender::Refuse { .. } | ToSender::Failed { .. }))
        .map(Message::encode)
        .collect();
    let other = [0, 3].map(|at| to_sender()[at].encode());
    let other = other.iter().map(|bytes| (1 - host, bytes.as_slice()));
    join_frames(other.chain(list.iter().map(|bytes| (host, bytes.as_slice()))))
}

fn block_bodies() -> Vec<Vec<u8>> {
    let text: Page = std::array::from_fn(|at| b"the quick brown fox "[at % 20]);
    let noise: Page = std::array::from_fn(|at| ((at * at * 31) >> 3).to_le_bytes()[0]);
    let vm = VmId(2);
    let runs = [
        ContentRun { vm: VmId(0), pfn: Pfn(5), content: 0, count: 2 },
        ContentRun { vm, pfn: Pfn(1000), content: 0, count: 1 },
        ContentRun { vm, pfn: Pfn(70_000), content: 1, count: 1 },
    ];
    let uniform = [0, 0, 0xcccc_cccc_cccc_cccc, 0xcccc_cccc_cccc_cccc, 7].map(|word| word);
    let uniform: Vec<UniformPlacement> = (0u32..)
        .zip(uniform)
        .map(|(at, word)| UniformPlacement {
            vm,
            run: UniformRun { first: Pfn(at * 300), count: at + 1, word },
        })
        .collect();
    let mut scratch = Scratch::new();
    let mut body = |runs: &[ContentRun], uniform: &[UniformPlacement], contents: &[&Page], encoding| {
        encode_block(&BlockParts { runs, uniform, contents }, encoding, &mut scratch)
    };
    let many: Vec<ContentRun> =
        (0..60).map(|at| ContentRun { vm, pfn: Pfn(at * 2), content: 0, count: 1 }).collect();
    vec![
        body(&[], &[], &[], Encoding::Raw),
        body(&[], &uniform, &[], Encoding::Raw),
        body(&runs[2..2], &uniform[..1], &[&noise], Encoding::Raw),
        body(&runs, &uniform, &[&text, &text], Encoding::Lz4),
        body(&runs, &uniform, &[&text, &text], Encoding::Zstd { level: 1 }),
        body(&many, &[], &[&text], Encoding::Zstd { level: -3 }),
        encode_named(&runs, &[1 << 100, u128::MAX], &mut Scratch::new()),
    ]
    .into_iter()
    .collect()
}

fn collectors() -> Vec<Vec<u8>> {
    // 700 bytes in symbols of at most 64: K is 11.
    let steps = |list: &[[u8; 4]]| [&[0xbc, 2, 8][..], list.as_flattened()].concat();
    let sources = |esis: std::ops::Range<u8>| esis.map(|esi| [0, esi, 0, 0]);
    let all: Vec<[u8; 4]> = sources(0..11).collect();
    let cauchy: Vec<[u8; 4]> = sources(2..11).chain([[3, 11, 0, 0], [3, 12, 0, 0], [5, 0, 0, 0]]).collect();
    let both: Vec<[u8; 4]> =
        sources(3..11).chain([[4, 11, 0, 0], [4, 9, 9, 9], [3, 40, 0, 0], [5, 0, 0, 0]]).collect();
    let raptorq: Vec<[u8; 4]> = (11..25).map(|esi| [4, esi, 1, 0]).chain([[5, 0, 0, 0]]).collect();
    let wrong: Vec<[u8; 4]> = sources(2..11)
        .chain([[0x83, 11, 0, 0], [3, 12, 0, 0], [5, 0, 0, 0], [3, 13, 0, 0], [5, 0, 0, 0]])
        .collect();
    [all, cauchy, both, raptorq, wrong].iter().map(|list| steps(list)).collect()
}

fn igmp() -> Vec<Vec<u8>> {
    let frame = |message: &[u8]| {
        let mut message = message.to_vec();
        let sum =
            message.chunks(2).fold(0u32, |sum, pair| sum + u32::from(pair[0]) * 256 + u32::from(pair[1]));
        let folded = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
        message[2..4].copy_from_slice(&folded.to_be_bytes());
        let total = u8::try_from(24 + message.len()).expect("small");
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x46, 0xc0, 0, total, 0, 0, 0x40, 0, 1, 2, 0, 0, 10, 77, 0, 9, 224, 0, 0, 1, 0x94, 4, 0, 0,
        ]);
        frame.extend(message);
        frame
    };
    vec![
        frame(&[0x11, 100, 0, 0, 0, 0, 0, 0]),
        frame(&[0x11, 10, 0, 0, 239, 1, 2, 3, 2, 125, 0, 0]),
        net::doctor::probe_payload_sized(3, 40),
    ]
}
