//! The append-only log of one task: finished bytes, one writer, any reader at its own offset.
//!
//! Every event is appended already framed (one SSE event in one HTTP chunk), so a reader writes the
//! log's own memory to its socket. The terminal event does not come from the writer, because whoever ends the
//! task (engine, cancel, eviction, watchdog, drain) sees to it, and the first to do so wins.
//!
//! ```text
//! body:     [started][token][token][metrics][token]…      segments, committed by compare-and-swap
//! settled:  [started][token]…[token][end | error][last chunk]      set once, after the body was closed
//! ```
//!
//! An ended task is remembered for minutes, and its log then takes the memory of its bytes, no more: who comes from now on
//! reads the settled form; the segments go when the last of those is done who were reading them.
//!
//! Memory order. Three pairs of threads must not miss each other, and all are store-then-load on either
//! side, so all these accesses are sequentially consistent: a writer commits then looks for readers while
//! a reader registers then looks at what is committed; `mute` sets its flag then looks for writes in
//! flight while a reader counts itself in flight then looks at the flag; and a cancel says who waits then
//! looks who has read a closed body out while a reader says that it has then looks who waits.

// A span is a pointer into memory that its guards keep alive.
#![allow(unsafe_code)]

mod segments;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use monoio::buf::IoBuf;

use self::segments::{Held, NoRoom, Position, Segments};
use crate::infra::reactor::{WakeAddress, WakeHub};

/// Readers of one task at a time. One cache line of addresses that the engine scans per commit.
pub const READERS_MAX: usize = 8;

/// The committed word: closed 1 bit | events 24 bits | segment 7 bits | offset 32 bits.
const CLOSED: u64 = 1 << 63;
const EVENTS_SHIFT: u32 = 39;
const EVENTS_MASK: u64 = (1 << 24) - 1;

fn events_of(committed: u64) -> u32 {
    (committed >> EVENTS_SHIFT & EVENTS_MASK) as u32
}

/// The log and who reads it. See the module's text.
pub struct TaskStream {
    /// Until the log is settled; readers and the writer hold it, too.
    segments: Mutex<Option<Held>>,
    settled: OnceLock<Settled>,
    committed: AtomicU64,
    /// End of the first event, which is sent even on a muted stream.
    preamble_end: AtomicU64,
    muted: AtomicBool,
    aborted: AtomicBool,
    opened: AtomicBool,
    /// One bit per reader: it has claimed all of a closed body.
    read_out: AtomicU8,
    in_flight: AtomicU32,
    /// Who waits until a closed body is read out, or until nothing is in flight; 0 is nobody.
    quiet_waiter: AtomicU64,
    readers: [AtomicU64; READERS_MAX],
    hub: WakeHub,
}

/// A log that has its end.
struct Settled {
    bytes: Box<[u8]>,
    /// Where the terminal event begins.
    tail_at: usize,
}

impl Settled {
    fn new(segments: &Segments, committed: Position, tail: &[u8]) -> Settled {
        let slices = || slices(segments, Position::START, committed);
        let mut bytes = Vec::with_capacity(slices().map(<[u8]>::len).sum::<usize>() + tail.len());
        slices().for_each(|slice| bytes.extend_from_slice(slice));
        let tail_at = bytes.len();
        bytes.extend_from_slice(tail);
        Settled { bytes: bytes.into_boxed_slice(), tail_at }
    }

    fn tail(&self) -> &[u8] {
        &self.bytes[self.tail_at..]
    }

    /// The body from `at` on; of a muted stream its first event alone. Positions count in one segment here.
    fn slice_from(&self, at: Position, muted: bool) -> Option<(&[u8], Position)> {
        let body = &self.bytes[..self.tail_at];
        let end = if muted && !body.is_empty() { frame_len(body) } else { body.len() };
        let slice = body.get(at.offset as usize..end).filter(|slice| !slice.is_empty())?;
        Some((slice, Position { segment: 0, offset: end as u32 }))
    }
}

/// All that is committed from `at` on.
fn slices(segments: &Segments, mut at: Position, committed: Position) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (slice, next) = segments.slice_from(at, committed)?;
        at = next;
        Some(slice)
    })
}

/// Why a reader was not let in: `READERS_MAX` others are reading this task.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadersFull;

/// Why an append did not happen.
#[derive(Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Somebody has ended the task.
    Closed,
    /// The log's last segment is full.
    Full,
}

/// The only way to append. Not `Clone`: it moves with the task from the reactor to the engine thread.
pub struct StreamWriter {
    stream: Arc<TaskStream>,
    segments: Held,
}

impl TaskStream {
    /// An empty log and its writer.
    pub fn new(hub: WakeHub) -> (Arc<TaskStream>, StreamWriter) {
        let segments = Held::fresh();
        let stream = Arc::new(TaskStream {
            segments: Mutex::new(Some(segments.clone())),
            settled: OnceLock::new(),
            committed: AtomicU64::new(0),
            preamble_end: AtomicU64::new(0),
            muted: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            read_out: AtomicU8::new(0),
            in_flight: AtomicU32::new(0),
            quiet_waiter: AtomicU64::new(0),
            readers: [const { AtomicU64::new(0) }; READERS_MAX],
            hub,
        });
        let writer = StreamWriter { stream: stream.clone(), segments };
        (stream, writer)
    }

    /// Ends the body. True for exactly one caller, who then owes the log its tail.
    pub fn close(&self) -> bool {
        self.committed.fetch_or(CLOSED, SeqCst) & CLOSED == 0
    }

    /// Events in the body; on a closed stream the `id:` of the terminal event.
    pub fn event_count(&self) -> u32 {
        events_of(self.committed.load(SeqCst))
    }

    pub fn is_closed(&self) -> bool {
        self.committed.load(SeqCst) & CLOSED != 0
    }

    /// Publishes the terminal event, framed and followed by the last chunk, and wakes the readers.
    pub fn finish(&self, tail: &[u8]) {
        assert!(self.is_closed(), "a tail belongs to a closed body");
        let segments = self.segments().clone().expect("a stream has one end");
        let committed = Position::unpack(self.committed.load(SeqCst));
        assert!(self.settled.set(Settled::new(&segments, committed, tail)).is_ok(), "a stream has one end");
        // Whoever finds none left finds the settled form, which was set before.
        *self.segments() = None;
        self.rouse_readers();
    }

    /// True when the terminal event can be read.
    pub fn is_finished(&self) -> bool {
        self.settled.get().is_some()
    }

    fn segments(&self) -> MutexGuard<'_, Option<Held>> {
        self.segments.lock().expect("nothing panics under this lock")
    }

    /// True when every reader has claimed all of the closed body: what was committed is what was sent.
    /// Otherwise `waiter` is woken as soon as that is so.
    pub fn is_read_out(&self, waiter: WakeAddress) -> bool {
        self.quiet_waiter.store(waiter.pack(), SeqCst);
        let read_out = self.read_out.load(SeqCst);
        self.readers.iter().enumerate().all(|(place, r)| read_out >> place & 1 == 1 || r.load(SeqCst) == 0)
    }

    fn wake_quiet_waiter(&self) {
        if let Some(waiter) = WakeAddress::unpack(self.quiet_waiter.swap(0, SeqCst)) {
            self.hub.wake(waiter);
        }
    }

    /// From now on nothing but the first and the terminal event is written to any reader.
    pub fn mute(&self) {
        self.muted.store(true, SeqCst);
    }

    /// True when no write of bytes claimed before `mute` is under way.
    /// Otherwise `waiter` is woken as soon as that is so.
    pub fn is_quiet(&self, waiter: WakeAddress) -> bool {
        self.quiet_waiter.store(waiter.pack(), SeqCst);
        self.in_flight.load(SeqCst) == 0
    }

    /// Tells the readers to drop their connections: a peer does not read and a cancel must not wait.
    pub fn abort_readers(&self) {
        self.aborted.store(true, SeqCst);
        self.rouse_readers();
    }

    /// Lets every reader look at once.
    pub fn rouse_readers(&self) {
        self.post_readers();
        self.hub.ring_all();
    }

    /// True when a reader was ever attached.
    pub fn was_opened(&self) -> bool {
        self.opened.load(SeqCst)
    }

    pub fn reader_count(&self) -> usize {
        self.readers.iter().filter(|r| r.load(SeqCst) != 0).count()
    }

    /// Marks every reader's reactor for the next ring. No system call.
    pub fn post_readers(&self) {
        for reader in &self.readers {
            if let Some(address) = WakeAddress::unpack(reader.load(SeqCst)) {
                self.hub.post(address);
            }
        }
    }

    /// A reader that begins after the event whose `id:` is `last_event_id`, or at the beginning.
    ///
    /// # Errors
    ///
    /// When `READERS_MAX` readers are attached already.
    pub fn attach(
        self: &Arc<Self>,
        address: WakeAddress,
        last_event_id: Option<u32>,
    ) -> Result<StreamReader, ReadersFull> {
        let packed = address.pack();
        let place = self.readers.iter().position(|r| r.compare_exchange(0, packed, SeqCst, SeqCst).is_ok());
        let Some(place) = place else { return Err(ReadersFull) };
        self.read_out.fetch_and(!(1 << place), SeqCst);
        self.opened.store(true, SeqCst);
        let segments = self.segments().clone();
        let mut reader = StreamReader { stream: self.clone(), segments, at: Position::START, place, tail_done: false };
        if let Some(id) = last_event_id {
            reader.skip(u64::from(id) + 1);
        }
        Ok(reader)
    }

    /// Every committed event's framed bytes, in order, the terminal one last.
    pub fn frames(&self) -> Vec<u8> {
        let mut all = Vec::new();
        self.read_all(|frames| all.extend_from_slice(frames));
        all
    }

    /// The same in pieces of whole frames, where they lie.
    pub fn read_all(&self, mut each: impl FnMut(&[u8])) {
        // The guard goes with this line: `each` may take its time.
        let segments = self.segments().clone();
        match segments {
            Some(segments) => {
                let committed = Position::unpack(self.committed.load(SeqCst));
                slices(&segments, Position::START, committed).for_each(each);
            }
            None => each(&self.settled().bytes),
        }
    }

    fn settled(&self) -> &Settled {
        self.settled.get().expect("a log without segments is settled")
    }
}

/// Length of the chunk at the start of `bytes`: `hex CRLF payload CRLF`.
fn frame_len(bytes: &[u8]) -> usize {
    let digits = bytes.iter().position(|&b| b == b'\r').expect("a frame begins with its length");
    let text = std::str::from_utf8(&bytes[..digits]).expect("a length is ASCII");
    let payload = usize::from_str_radix(text, 16).expect("a length is hexadecimal");
    digits + 2 + payload + 2
}

impl StreamWriter {
    /// Appends one framed event and commits it. Readers are marked; the caller rings the hub once per step.
    ///
    /// # Errors
    ///
    /// `Closed` when the task was ended: nothing was appended. `Full` past the last segment.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), AppendError> {
        let stream = &*self.stream;
        let before = stream.committed.load(SeqCst);
        if before & CLOSED != 0 {
            return Err(AppendError::Closed);
        }
        let at = self.segments.room_for(Position::unpack(before), frame.len()).map_err(|NoRoom| AppendError::Full)?;
        // SAFETY: it lies past the committed position, `&mut self` makes this the only writer, and no reader is shown it
        // before the compare-and-swap below.
        unsafe { self.segments.write(at, frame) };
        let after = Position { offset: at.offset + frame.len() as u32, ..at };
        let events = u64::from(events_of(before)) + 1;
        assert!(events < EVENTS_MASK, "a context has fewer tokens than that");
        let committed = after.pack() | events << EVENTS_SHIFT;
        // Fails only when somebody has closed the body meanwhile: then the frame was never there.
        if stream.committed.compare_exchange(before, committed, SeqCst, SeqCst).is_err() {
            return Err(AppendError::Closed);
        }
        if before == 0 {
            stream.preamble_end.store(after.pack(), SeqCst);
        }
        stream.post_readers();
        Ok(())
    }

    /// The `id:` of the next event.
    pub fn next_id(&self) -> u32 {
        self.stream.event_count()
    }
}

/// What a reader may do next.
pub enum Claim {
    /// Write these bytes, then claim again.
    Bytes(Span),
    /// Nothing yet: a post to the reader's address says when.
    Wait,
    /// The terminal event and the last chunk were claimed before.
    Done,
}

/// One connection's place in a log. Dropping it gives the place back.
pub struct StreamReader {
    stream: Arc<TaskStream>,
    /// None for one that came to a settled log: it reads that.
    segments: Option<Held>,
    at: Position,
    place: usize,
    tail_done: bool,
}

impl StreamReader {
    /// The next bytes: whole events, contiguous, framed as HTTP chunks.
    pub fn claim(&mut self) -> Claim {
        if self.tail_done {
            return Claim::Done;
        }
        let stream = &self.stream;
        // Most claims come after a write and find nothing: these need not be counted, for they take no bytes.
        let committed = stream.committed.load(SeqCst);
        if committed & CLOSED == 0 && self.at == Position::unpack(committed) {
            return Claim::Wait;
        }
        stream.in_flight.fetch_add(1, SeqCst);
        let guard = InFlight(stream.clone());
        let muted = stream.muted.load(SeqCst);
        let committed = stream.committed.load(SeqCst);
        let found = match &self.segments {
            Some(segments) => {
                let limit = if muted { stream.preamble_end.load(SeqCst) } else { committed };
                segments.slice_from(self.at, Position::unpack(limit))
            }
            None => stream.settled().slice_from(self.at, muted),
        };
        if let Some((slice, next)) = found {
            let span = Span { ptr: slice.as_ptr(), len: slice.len(), _guard: guard, _segments: self.segments.clone() };
            self.at = next;
            return Claim::Bytes(span);
        }
        if committed & CLOSED != 0 {
            if stream.read_out.fetch_or(1 << self.place, SeqCst) >> self.place & 1 == 0 {
                stream.wake_quiet_waiter();
            }
            if let Some(tail) = stream.settled.get().map(Settled::tail) {
                self.tail_done = true;
                return Claim::Bytes(Span { ptr: tail.as_ptr(), len: tail.len(), _guard: guard, _segments: None });
            }
        }
        Claim::Wait
    }

    /// Leaves out the next events, as many of them as there are.
    fn skip(&mut self, events: u64) {
        let stream = self.stream.clone();
        let committed = Position::unpack(stream.committed.load(SeqCst));
        let mut left = events;
        while left > 0 {
            let found = match &self.segments {
                Some(segments) => segments.slice_from(self.at, committed),
                None => stream.settled().slice_from(self.at, false),
            };
            let Some((slice, next)) = found else { return };
            let mut used = 0;
            while left > 0 && used < slice.len() {
                used += frame_len(&slice[used..]);
                left -= 1;
            }
            self.at = Position { offset: next.offset - (slice.len() - used) as u32, ..next };
        }
    }

    /// True when the connection must be dropped even in the middle of a write.
    pub fn aborted(&self) -> bool {
        self.stream.aborted.load(SeqCst)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.stream.readers[self.place].store(0, SeqCst);
        if self.stream.is_closed() {
            self.stream.wake_quiet_waiter();
        }
    }
}

/// Keeps the log alive and counts one write in flight.
struct InFlight(Arc<TaskStream>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let last = self.0.in_flight.fetch_sub(1, SeqCst) == 1;
        if last && self.0.muted.load(SeqCst) {
            self.0.wake_quiet_waiter();
        }
    }
}

/// Committed bytes of a log, to be written as they are. Drop it when they are written: cancel waits for that.
pub struct Span {
    ptr: *const u8,
    len: usize,
    _guard: InFlight,
    /// Where the bytes are, unless the stream itself has them.
    _segments: Option<Held>,
}

impl Span {
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` and `len` came from one finished slice, in segments or a stream that this keeps alive.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

// SAFETY: segments and the settled form never move and are never written again once committed, and the span
// keeps them alive as long as the buffer is with the kernel.
unsafe impl IoBuf for Span {
    fn read_ptr(&self) -> *const u8 {
        self.ptr
    }

    fn bytes_init(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
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
        stream.close();
        stream.finish(&tail(1));
        let Claim::Bytes(span) = early.claim() else { panic!("there are bytes") };
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
        let mut seen = Vec::new();
        loop {
            match reader.claim() {
                Claim::Bytes(span) => seen.extend_from_slice(span.as_slice()),
                Claim::Wait => std::hint::spin_loop(),
                Claim::Done => break,
            }
        }
        writing.join().unwrap();
        assert!(seen == expected);
    }
}
