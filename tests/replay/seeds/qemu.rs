//! What QEMU writes.

use pages::PAGE_SIZE;

/// The smallest file that is taken: one block of two pages.
pub(super) fn mapped_ram(capabilities: &[&str]) -> Vec<u8> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let counted = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let mut file = b"QEVM\0\0\0\x03\x07\0\0\0\x06pc-1.0\x05".to_vec();
    file.extend(counted("configuration/capabilities"));
    file.extend([0, 0, 0, 1, 0, 0, 0, u8::try_from(capabilities.len()).expect("few")]);
    capabilities.iter().for_each(|capability| file.extend(counted(capability)));
    file.extend(b"\x01\0\0\0\x07\x03ram\0\0\0\0\0\0\0\x04");
    file.extend(((2 * PAGE) | 4).to_be_bytes());
    file.extend(counted("pc.ram"));
    file.extend((2 * PAGE).to_be_bytes());
    if capabilities.len() > 1 {
        file.extend(0x10_0000u64.to_be_bytes());
    }
    let bitmap = file.len() as u64 + 28;
    file.extend(1u32.to_be_bytes());
    [PAGE, bitmap, PAGE].iter().for_each(|field| file.extend(field.to_be_bytes()));
    file.extend(3u64.to_le_bytes());
    file.resize(3 * PAGE_SIZE, 0);
    file.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x07\x04 device state \x7e\0\0\0\0\0\x06\0\0\0\x02{}");
    file
}

/// Streams with a piece's length in front, answers, and states.
pub(super) fn qemu() -> [Vec<Vec<u8>>; 3] {
    use vmm::qemu::stream::{
        Block, BlockPlan, Command, PageRange, RamWriter, ReturnMessage, with_ignore_shared, write_command,
        write_description, write_end,
    };
    use vmm::qemu::{DeviceState, Fingerprint};
    let block = |id: &str, pages: u32, first_page| Block {
        id: id.into(),
        len: u64::from(pages) * 4096,
        page_size: 4096,
        gpa: Some(0),
        first_page,
    };
    let blocks = vec![block("pc.ram", 70, 0), block("pc.bios", 3, 70)];
    let prefix = b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0".to_vec();
    let devices = b"\x04\0\0\0\x09\x03cpu\0\0\0\0\0\0\0\x01 device state \x7e\0\0\0\x09";
    let stream = |shared: bool| {
        let mut out = vec![100];
        out.extend(if shared { with_ignore_shared(&prefix) } else { prefix.clone() });
        let mut writer = RamWriter::new(2, &blocks);
        writer.start(&mut out, &BlockPlan::default(), shared);
        writer.part(&mut out);
        writer.page(&mut out, 1, &[7; PAGE_SIZE]);
        (60..72).for_each(|page| writer.zero(&mut out, page));
        writer.close(&mut out);
        let ranges = vec![PageRange { start: 0, len: 4096 }];
        write_command(&mut out, &Command::RamDiscard { block: "pc.ram".into(), ranges });
        write_command(&mut out, &Command::SwitchoverStart);
        writer.end(&mut out);
        writer.close(&mut out);
        out.extend_from_slice(devices);
        write_end(&mut out);
        write_description(&mut out, b"{\"page_size\": 4096}");
        out
    };
    let answers = [
        ReturnMessage::Pong(1),
        ReturnMessage::RequestPages { start: 4096, len: 4096, block: Some("pc.ram".into()) },
        ReturnMessage::RequestPages { start: 8192, len: 4096, block: None },
        ReturnMessage::ReceivedBitmap("pc.bios".into()),
        ReturnMessage::ResumeAck(1),
        ReturnMessage::Shut(0),
    ];
    let answers: Vec<u8> = answers.iter().flat_map(ReturnMessage::encode).collect();
    let bitmap = [&32u64.to_be_bytes()[..], &[0xff; 32], &0x0123_4567_89ab_cdef_u64.to_be_bytes()].concat();
    let fingerprint = Fingerprint {
        version: "10.0.2".into(),
        machine: "pc-q35-10.0".into(),
        accelerator: "tcg".into(),
        cpu: "max-x86_64-cpu".into(),
        cpu_features: vec![1, 2],
        vcpus: 1,
        blocks: Vec::new(),
        capabilities: vec!["postcopy-ram".into()],
    };
    let state = DeviceState {
        prefix: prefix.clone(),
        section: 2,
        early: Vec::new(),
        switchover_start: true,
        devices: devices.to_vec(),
        description: b"{}".to_vec(),
        blocks: blocks.clone(),
        fingerprint,
    };
    [
        vec![stream(false), stream(true)],
        vec![answers.clone(), [answers, bitmap].concat()],
        vec![state.encode()],
    ]
}
