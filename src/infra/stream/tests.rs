use super::segments::SEGMENT_LEN_FIRST;
use super::*;
use crate::infra::http::sse;

fn frame(id: u32, data: &str) -> Vec<u8> {
    let mut out = Vec::new();
    sse::write_event(&mut out, id, "token", data.as_bytes());
    out
}

fn tail(id: u32) -> Box<[u8]> {
    let mut out = Vec::new();
    sse::write_event(&mut out, id, "end", b"{}");
    out.extend_from_slice(sse::LAST_CHUNK);
    out.into()
}

fn stream() -> (Arc<TaskStream>, StreamWriter, WakeAddress) {
    let (hub, address) = WakeHub::for_tests();
    let (stream, writer) = TaskStream::new(hub);
    (stream, writer, address)
}

fn drain(reader: &mut StreamReader) -> Vec<u8> {
    let mut out = Vec::new();
    while let Claim::Bytes(span) = reader.claim() {
        out.extend_from_slice(span.as_slice());
    }
    out
}

/// To the end, with a writer on another thread.
fn read_through(reader: &mut StreamReader) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        match reader.claim() {
            Claim::Bytes(span) => out.extend_from_slice(span.as_slice()),
            Claim::Wait => std::hint::spin_loop(),
            Claim::Done => return out,
        }
    }
}

#[test]
fn every_reader_gets_every_byte_once_across_segments() {
    let (stream, mut writer, address) = stream();
    let mut early = stream.attach(address, None).unwrap();
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    for id in 0..5000 {
        let frame = frame(id, &"x".repeat((id % 300) as usize));
        writer.append(&frame).unwrap();
        expected.extend_from_slice(&frame);
        if id % 7 == 0 {
            seen.extend(drain(&mut early));
        }
    }
    assert!(stream.close());
    stream.finish(&tail(5000));
    expected.extend_from_slice(&tail(5000));
    seen.extend(drain(&mut early));
    assert!(seen == expected);
    let mut late = stream.attach(address, None).unwrap();
    assert!(drain(&mut late) == expected);
    assert!(stream.frames() == expected);
    assert!(matches!(late.claim(), Claim::Done));
}

#[test]
fn an_event_longer_than_a_segment_gets_one_of_its_own() {
    let (stream, mut writer, address) = stream();
    let mut expected = Vec::new();
    for (id, len) in (0u32..).zip([SEGMENT_LEN_FIRST, 5, 7 * SEGMENT_LEN_FIRST, 5]) {
        let frame = frame(id, &"x".repeat(len));
        writer.append(&frame).unwrap();
        expected.extend_from_slice(&frame);
    }
    assert!(drain(&mut stream.attach(address, None).unwrap()) == expected);
}

#[test]
fn a_reader_goes_on_after_its_last_event() {
    let (stream, mut writer, address) = stream();
    let frames: Vec<_> = (0..400).map(|id| frame(id, "hello")).collect();
    frames.iter().for_each(|f| writer.append(f).unwrap());
    stream.close();
    stream.finish(&tail(400));
    for last in [0, 1, 34, 35, 36, 107, 398, 399, 400, 9999] {
        let mut expected: Vec<u8> = frames.iter().skip(last as usize + 1).flatten().copied().collect();
        expected.extend_from_slice(&tail(400));
        let mut reader = stream.attach(address, Some(last)).unwrap();
        assert!(drain(&mut reader) == expected, "after {last}");
    }
}

#[test]
fn nothing_is_appended_to_a_closed_stream() {
    let (stream, mut writer, _) = stream();
    writer.append(&frame(0, "a")).unwrap();
    assert!(stream.close());
    assert!(!stream.close(), "only one caller ends a task");
    assert_eq!(writer.append(&frame(1, "b")), Err(AppendError::Closed));
    assert!(stream.frames() == frame(0, "a"));
}

#[test]
fn a_muted_stream_gives_its_first_and_its_last_event_only() {
    let (stream, mut writer, address) = stream();
    let mut reader = stream.attach(address, None).unwrap();
    (0..3).for_each(|id| writer.append(&frame(id, "a")).unwrap());
    stream.mute();
    assert!(drain(&mut reader) == frame(0, "a"));
    stream.close();
    stream.finish(&tail(3));
    assert!(drain(&mut reader) == *tail(3));
}

#[test]
fn quiet_means_that_no_claimed_span_is_left() {
    let (stream, mut writer, address) = stream();
    let mut reader = stream.attach(address, None).unwrap();
    writer.append(&frame(0, "a")).unwrap();
    let Claim::Bytes(span) = reader.claim() else { panic!("there are bytes") };
    stream.mute();
    assert!(!stream.is_quiet(address));
    drop(span);
    assert!(stream.is_quiet(address));
}

#[test]
fn a_closed_stream_is_read_out_when_every_reader_has_claimed_all_of_it_or_is_gone() {
    let (stream, mut writer, address) = stream();
    let mut readers: Vec<_> = (0..3).map(|_| stream.attach(address, None).unwrap()).collect();
    let left = readers.pop();
    (0..2).for_each(|id| writer.append(&frame(id, "a")).unwrap());
    assert!(drain(&mut readers[0]) == [frame(0, "a"), frame(1, "a")].concat());
    assert!(stream.close());
    assert!(!stream.is_read_out(address), "nobody knows yet that it is closed");
    for reader in &mut readers {
        assert!(!stream.is_read_out(address));
        drain(reader);
    }
    assert!(!stream.is_read_out(address), "one has read nothing");
    drop(left);
    assert!(stream.is_read_out(address));
    drop(readers);
    let late = stream.attach(address, None).unwrap();
    assert!(!stream.is_read_out(address), "the place of one that has read is another's now");
    drop(late);
    assert!(stream.is_read_out(address));
}

#[test]
fn segments_go_with_the_last_of_those_who_were_reading_them() {
    let (stream, mut writer, address) = stream();
    let mut early = stream.attach(address, None).unwrap();
    writer.append(&frame(0, "a")).unwrap();
    let segments = writer.segments.downgrade();
    let Claim::Bytes(span) = early.claim() else { panic!("there are bytes") };
    stream.close();
    stream.finish(&tail(1));
    let late = stream.attach(address, None).unwrap();
    drop((early, writer));
    assert_eq!(segments.strong_count(), 1, "the span may be with the kernel");
    assert!(span.as_slice() == frame(0, "a"));
    drop((span, late));
    // With somebody who might still ask for them they are freed; without, they are laid aside for the next log.
    assert_eq!(segments.strong_count(), 0);
}

#[test]
fn what_a_settled_log_leaves_begins_the_next_one_empty() {
    for round in 0..3 {
        let (stream, mut writer, address) = stream();
        let mut reader = stream.attach(address, None).unwrap();
        let long = frame(0, &"x".repeat(3 * SEGMENT_LEN_FIRST + round));
        writer.append(&long).unwrap();
        writer.append(&frame(1, "a")).unwrap();
        assert!(drain(&mut reader) == [long, frame(1, "a")].concat());
        stream.close();
        stream.finish(&tail(2));
    }
}

#[test]
fn a_reader_in_the_middle_goes_on_when_the_log_settles() {
    for read in [0, 1, 40, 199] {
        let (stream, mut writer, address) = stream();
        let frames: Vec<_> = (0..200).map(|id| frame(id, &"x".repeat(id as usize))).collect();
        let mut early = stream.attach(address, None).unwrap();
        let mut late = stream.attach(address, None).unwrap();
        frames[..read].iter().for_each(|f| writer.append(f).unwrap());
        assert!(drain(&mut early) == frames[..read].concat());
        frames[read..].iter().for_each(|f| writer.append(f).unwrap());
        stream.close();
        // One claim is of the segments, and the next of what is settled meanwhile.
        let Claim::Bytes(span) = late.claim() else { panic!("there are bytes") };
        stream.finish(&tail(200));
        let skipped = stream.attach(address, Some(read as u32)).unwrap();
        let begun = span.as_slice().to_vec();
        drop((span, writer));
        let all = [frames.concat(), tail(200).to_vec()].concat();
        assert!([begun, drain(&mut late)].concat() == all);
        assert!(drain(&mut early) == all[frames[..read].concat().len()..]);
        assert!(drain(&mut { skipped }) == all[frames[..=read].concat().len()..]);
    }
}

/// Logs end at every moment of a reader's claims.
#[test]
fn settling_under_a_reader_loses_nothing() {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Arc<TaskStream>>(1);
    let expected: Vec<u8> = (0..9).flat_map(|id| frame(id, "abcdefgh")).chain(tail(9)).collect();
    let reading = std::thread::spawn(move || {
        let (_, address) = WakeHub::for_tests();
        for stream in receiver {
            assert!(read_through(&mut stream.attach(address, None).unwrap()) == expected);
        }
    });
    for round in 0..3000 {
        let (stream, mut writer, _) = stream();
        if round % 2 == 0 {
            sender.send(stream.clone()).unwrap();
        }
        (0..9).for_each(|id| writer.append(&frame(id, "abcdefgh")).unwrap());
        if round % 2 == 1 {
            sender.send(stream.clone()).unwrap();
        }
        stream.close();
        stream.finish(&tail(9));
    }
    drop(sender);
    reading.join().unwrap();
}

#[test]
fn who_comes_late_to_a_muted_stream_gets_its_first_and_its_last_event() {
    let (stream, mut writer, address) = stream();
    (0..3).for_each(|id| writer.append(&frame(id, "a")).unwrap());
    stream.mute();
    stream.close();
    stream.finish(&tail(3));
    assert!(drain(&mut stream.attach(address, None).unwrap()) == [&frame(0, "a")[..], &tail(3)].concat());
    assert!(drain(&mut stream.attach(address, Some(1)).unwrap()) == *tail(3));
    let (empty, _writer, address) = self::stream();
    empty.mute();
    empty.close();
    empty.finish(&tail(0));
    assert!(drain(&mut empty.attach(address, None).unwrap()) == *tail(0));
}

#[test]
fn readers_are_counted_and_bounded() {
    let (stream, _writer, address) = stream();
    assert!(!stream.was_opened());
    let readers: Vec<_> = (0..READERS_MAX).map(|_| stream.attach(address, None).unwrap()).collect();
    assert_eq!(stream.attach(address, None).err(), Some(ReadersFull));
    assert_eq!(stream.reader_count(), READERS_MAX);
    drop(readers);
    assert_eq!(stream.reader_count(), 0);
    assert!(stream.was_opened());
}

#[test]
fn a_reader_on_another_thread_never_sees_unfinished_bytes() {
    let (stream, mut writer, address) = stream();
    let mut reader = stream.attach(address, None).unwrap();
    let count = 20_000;
    let expected: Vec<u8> = (0..count).flat_map(|id| frame(id, "abcdefgh")).chain(tail(count)).collect();
    let writing = std::thread::spawn(move || {
        (0..count).for_each(|id| writer.append(&frame(id, "abcdefgh")).unwrap());
        stream.close();
        stream.finish(&tail(count));
    });
    assert!(read_through(&mut reader) == expected);
    writing.join().unwrap();
}

/// Every open stream has one.
#[test]
fn a_log_of_one_segment_takes_little_more_than_that() {
    let taken = size_of::<super::segments::Segments>();
    assert!(taken <= SEGMENT_LEN_FIRST + 64, "{taken} bytes");
}
