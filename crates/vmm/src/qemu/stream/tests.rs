use super::*;
use proptest::prelude::*;

fn id() -> impl Strategy<Value = String> {
    "[a-z0-9/@._-]{1,40}"
}

fn command() -> impl Strategy<Value = Command> {
    let range = (0..1u64 << 40, 1..1u64 << 40).prop_map(|(start, len)| PageRange { start, len });
    prop_oneof![
        Just(Command::OpenReturnPath),
        any::<u32>().prop_map(Command::Ping),
        Just(Command::PostcopyAdvise(None)),
        any::<(u64, u64)>().prop_map(|(block_pages, target_page)| {
            Command::PostcopyAdvise(Some(PostcopyPages { block_pages, target_page }))
        }),
        Just(Command::PostcopyListen),
        Just(Command::PostcopyRun),
        (id(), proptest::collection::vec(range, 0..30))
            .prop_map(|(block, ranges)| Command::RamDiscard { block, ranges }),
        Just(Command::PostcopyResume),
        id().prop_map(Command::ReceivedBitmap),
        Just(Command::SwitchoverStart),
    ]
}

fn message() -> impl Strategy<Value = ReturnMessage> {
    prop_oneof![
        any::<u32>().prop_map(ReturnMessage::Shut),
        any::<u32>().prop_map(ReturnMessage::Pong),
        (0..1u64 << 40, any::<u32>(), proptest::option::of(id()))
            .prop_map(|(start, len, block)| ReturnMessage::RequestPages { start, len, block }),
        id().prop_map(ReturnMessage::ReceivedBitmap),
        any::<u32>().prop_map(ReturnMessage::ResumeAck),
        Just(ReturnMessage::SwitchoverAck),
    ]
}

proptest! {
    #[test]
    fn commands_read_as_they_were_written(commands in proptest::collection::vec(command(), 1..5)) {
        // Behind a head, as a stream has them.
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x01m".to_vec();
        commands.iter().for_each(|command| write_command(&mut stream, command));
        let mut read = Vec::new();
        let used = Parser::new(BlockPlan::default()).feed(&stream, |event| {
            if let Event::Command(command) = event {
                read.push(command);
            }
            Ok::<_, StreamError>(())
        });
        prop_assert_eq!(used, Ok(stream.len()));
        prop_assert_eq!(read, commands);
    }

    #[test]
    fn answers_read_as_they_were_written(messages in proptest::collection::vec(message(), 1..5)) {
        let bytes: Vec<u8> = messages.iter().flat_map(ReturnMessage::encode).collect();
        let mut rest = bytes.as_slice();
        for message in messages {
            for cut in 0..message.encode().len() {
                prop_assert_eq!(ReturnMessage::decode(&rest[..cut]), Ok(None));
            }
            let (read, len) = ReturnMessage::decode(rest).unwrap().unwrap();
            prop_assert_eq!(read, message);
            rest = &rest[len..];
        }
    }
}

#[test]
fn layouts_are_those_of_qemu() {
    let mut out = Vec::new();
    let discard = Command::RamDiscard {
        block: "pc.ram".into(),
        ranges: vec![PageRange { start: 0x1000, len: 0x2000 }],
    };
    write_command(&mut out, &discard);
    assert_eq!(out[..5], [8, 0, 6, 0, 25]);
    assert_eq!(&out[5..14], b"\0\x06pc.ram\0");
    let advise = Command::PostcopyAdvise(Some(PostcopyPages { block_pages: 4096, target_page: 4096 }));
    out.clear();
    write_command(&mut out, &advise);
    assert_eq!(out, [8, 0, 3, 0, 16, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0]);
    let request = ReturnMessage::RequestPages { start: 0x3000, len: 4096, block: Some("pc.ram".into()) };
    assert_eq!(request.encode()[..4], [0, 3, 0, 19]);
}

#[test]
fn a_huge_block_tells_its_page_size_only_in_postcopy() {
    let block = |id: &str, page_size, first_page| Block {
        id: id.into(),
        len: 4 << 20,
        page_size,
        gpa: None,
        first_page,
    };
    let blocks = [block("huge", 2 << 20, 0), block("small", 4096, 1024)];
    for postcopy in [false, true] {
        let plan = BlockPlan { huge: vec![("huge".into(), 2 << 20)], postcopy };
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x01m".to_vec();
        let head = stream.len();
        RamWriter::new(3, &blocks).start(&mut stream, &plan, false);
        let plain = 4 + 1 + 4 + 4 + 4 + 8 + (1 + 4 + 8) + (1 + 5 + 8) + 8 + 5;
        assert_eq!(stream.len() - head, plain + if postcopy { 8 } else { 0 });
        let mut read = Vec::new();
        Parser::new(plan)
            .feed(&stream, |event| {
                if let Event::Blocks { blocks, .. } = event {
                    read = blocks.to_vec();
                }
                Ok::<_, StreamError>(())
            })
            .unwrap();
        assert_eq!(read, blocks);
    }
}

#[test]
fn a_received_bitmap_ends_with_its_mark() {
    let bitmap = |len: u64, words: &[u64], mark: u64| {
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&len.to_be_bytes()[..], &words, &mark.to_be_bytes()].concat()
    };
    let good = bitmap(16, &[5, 1], BITMAP_END_MARK);
    assert_eq!(received_bitmap(&good, 65), Ok(Some((vec![5, 1], 32))));
    assert_eq!(received_bitmap(&good[..31], 65), Ok(None));
    assert!(received_bitmap(&good, 64).is_err(), "another block's");
    assert!(received_bitmap(&bitmap(16, &[5, 1], 7), 65).is_err());
    assert!(received_bitmap(&bitmap(1 << 40, &[], 0), 1 << 43).is_err());
}
