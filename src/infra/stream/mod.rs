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
//! An ended task is remembered for minutes, and its log then takes the memory of its bytes, no more: claims from then on
//! are of the settled form, and the segments go when no earlier claim is in flight any more.
//!
//! Memory order. Four pairs of threads must not miss each other, and all are store-then-load on either
//! side, so all these accesses are sequentially consistent: a writer commits then looks for readers while
//! a reader registers then looks at what is committed; `mute` sets its flag then looks for writes in
//! flight while a reader counts itself in flight then looks at the flag; a cancel says who waits then
//! looks who has read a closed body out while a reader says that it has then looks who waits; and whoever settles a log
//! takes the segments out of its sight then looks for claims in flight while a reader counts itself in flight then looks
//! for the segments.

// A span is a pointer into memory that its guards keep alive.
#![allow(unsafe_code)]

mod segments;
mod settled;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use monoio::buf::IoBuf;

use self::segments::{Cells, Held, NoRoom, Place, Position, Segments};
use self::settled::Settled;
use crate::infra::reactor::{WakeAddress, WakeHub};
use crate::infra::recycle::{self, Shell};

/// Readers of one task at a time. One cache line of addresses that the engine scans per commit.
pub const READERS_MAX: usize = 8;

/// The committed word: closed 1 bit | events 24 bits | segment 7 bits | offset 32 bits.
const CLOSED: u64 = 1 << 63;
const EVENTS_SHIFT: u32 = 39;
const EVENTS_MASK: u64 = (1 << 24) - 1;

fn events_of(committed: u64) -> u32 {
    (committed >> EVENTS_SHIFT & EVENTS_MASK) as u32
}

/// The log and who reads it. See the module's text. What a token touches is two cache lines.
#[repr(C, align(64))]
pub struct TaskStream {
    committed: AtomicU64,
    /// Until the log is settled; the writer holds them, too.
    segments: Place,
    /// Segments that nobody finds any more, and that a claim in flight may still be reading.
    retired: Place,
    /// End of the first event, which is sent even on a muted stream.
    preamble_end: AtomicU64,
    /// Who waits until a closed body is read out, or until nothing is in flight; 0 is nobody.
    quiet_waiter: AtomicU64,
    in_flight: AtomicU32,
    muted: AtomicBool,
    aborted: AtomicBool,
    opened: AtomicBool,
    /// One bit per reader: it has claimed all of a closed body.
    read_out: AtomicU8,
    hub: WakeHub,
    readers: [AtomicU64; READERS_MAX],
    settled: OnceLock<Settled>,
}

thread_local! {
    /// Memory of the log that was forgotten last.
    static SPARE: Cell<Option<Shell<TaskStream>>> = const { Cell::new(None) };
}

/// All that is committed from `at` on.
fn slices(segments: &Segments, mut at: Position, committed: Position) -> impl Iterator<Item = &[u8]> {
    let mut cells = Cells::NONE;
    std::iter::from_fn(move || {
        let (slice, next) = segments.slice_from(at, committed, &mut cells)?;
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
    cells: Cells,
}

impl TaskStream {
    /// An empty log and its writer.
    pub fn new(hub: WakeHub) -> (Arc<TaskStream>, StreamWriter) {
        let segments = Held::fresh();
        let stream = TaskStream {
            committed: AtomicU64::new(0),
            segments: Place::of(segments.clone()),
            retired: Place::empty(),
            preamble_end: AtomicU64::new(0),
            quiet_waiter: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            muted: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            read_out: AtomicU8::new(0),
            hub,
            readers: [const { AtomicU64::new(0) }; READERS_MAX],
            settled: OnceLock::new(),
        };
        let stream = recycle::place(stream, SPARE.take());
        let writer = StreamWriter { stream: stream.clone(), segments, cells: Cells::NONE };
        (stream, writer)
    }

    /// Lets go of a log. If nobody else has it, the next one of this thread gets its memory.
    pub fn recycle(stream: Arc<TaskStream>) {
        if let Ok((_, shell)) = Shell::open(stream) {
            SPARE.set(Some(shell));
        }
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
        let pin = self.pin();
        let committed = Position::unpack(self.committed.load(SeqCst));
        let settled = Settled::new(pin.segments().expect("a stream has one end"), committed, tail);
        assert!(self.settled.set(settled).is_ok(), "a stream has one end");
        // Whoever finds none left finds the settled form, which was set before.
        self.segments.move_to(&self.retired);
        drop(pin);
        self.rouse_readers();
    }

    /// While it lasts, no segments that can be found are let go of.
    fn pin(&self) -> Pin<'_> {
        self.in_flight.fetch_add(1, SeqCst);
        Pin(self)
    }

    fn unpin(&self) {
        let last = self.in_flight.fetch_sub(1, SeqCst) == 1;
        if last && self.muted.load(SeqCst) {
            self.wake_quiet_waiter();
        }
        // Who began before the segments were retired is counted, and lets go of them when it ends; who began since does not
        // find them.
        if last && self.retired.is_taken() && self.in_flight.load(SeqCst) == 0 {
            drop(self.retired.take());
        }
    }

    /// True when the terminal event can be read.
    pub fn is_finished(&self) -> bool {
        self.settled.get().is_some()
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
        let mut reader = StreamReader { stream: self.clone(), cursor: Cursor::START, place, tail_done: false };
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
        // Nothing is in flight after this line: `each` may take its time.
        let held = self.pin().hold();
        match held {
            Some(segments) => {
                let committed = Position::unpack(self.committed.load(SeqCst));
                slices(&segments, Position::START, committed).for_each(each);
            }
            None => each(self.settled().bytes()),
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
        let at = self
            .segments
            .room_for(Position::unpack(before), frame.len(), &mut self.cells)
            .map_err(|NoRoom| AppendError::Full)?;
        // SAFETY: they are this writer's segments, it lies past the committed position, `&mut self` makes this the only writer,
        // and no reader is shown it before the compare-and-swap below.
        unsafe { self.cells.write(at, frame) };
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

    pub fn log(&self) -> &TaskStream {
        &self.stream
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
    cursor: Cursor,
    place: usize,
    tail_done: bool,
}

/// Where a reader is.
struct Cursor {
    at: Position,
    /// The same in bytes, which is where it is in the settled form.
    bytes: usize,
    cells: Cells,
}

impl Cursor {
    const START: Cursor = Cursor { at: Position::START, bytes: 0, cells: Cells::NONE };

    /// Finished bytes from here on, in one piece, and where they end. `limit` is a committed word.
    fn slice<'a>(
        &mut self,
        stream: &'a TaskStream,
        segments: Option<&'a Segments>,
        limit: u64,
        muted: bool,
    ) -> Option<(&'a [u8], Position)> {
        match segments {
            Some(segments) => segments.slice_from(self.at, Position::unpack(limit), &mut self.cells),
            // Nobody finds segments again, so the position in them is of no use any more.
            None => {
                let slice = stream.settled().slice_from(self.bytes, muted)?;
                Some((slice, Position { segment: 0, offset: (self.bytes + slice.len()) as u32 }))
            }
        }
    }

    fn go_on(&mut self, to: Position, bytes: usize) {
        self.at = to;
        self.bytes += bytes;
    }
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
        if committed & CLOSED == 0 && self.cursor.at == Position::unpack(committed) {
            return Claim::Wait;
        }
        let guard = InFlight::new(stream);
        let muted = stream.muted.load(SeqCst);
        let committed = stream.committed.load(SeqCst);
        let limit = if muted { stream.preamble_end.load(SeqCst) } else { committed };
        if let Some((slice, next)) = self.cursor.slice(stream, guard.segments(), limit, muted) {
            let span = Span { ptr: slice.as_ptr(), len: slice.len(), _guard: guard };
            self.cursor.go_on(next, span.len);
            return Claim::Bytes(span);
        }
        if committed & CLOSED != 0 {
            if stream.read_out.fetch_or(1 << self.place, SeqCst) >> self.place & 1 == 0 {
                stream.wake_quiet_waiter();
            }
            if let Some(tail) = stream.settled.get().map(Settled::tail) {
                self.tail_done = true;
                return Claim::Bytes(Span { ptr: tail.as_ptr(), len: tail.len(), _guard: guard });
            }
        }
        Claim::Wait
    }

    /// Leaves out the next events, as many of them as there are.
    fn skip(&mut self, events: u64) {
        let stream = self.stream.clone();
        let pin = stream.pin();
        let committed = stream.committed.load(SeqCst);
        let mut left = events;
        while left > 0 {
            let found = self.cursor.slice(&stream, pin.segments(), committed, false);
            let Some((slice, next)) = found else { return };
            let mut used = 0;
            while left > 0 && used < slice.len() {
                used += frame_len(&slice[used..]);
                left -= 1;
            }
            self.cursor.go_on(Position { offset: next.offset - (slice.len() - used) as u32, ..next }, used);
        }
    }

    pub fn log(&self) -> &TaskStream {
        &self.stream
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

/// One claim in flight, of somebody who has the log.
struct Pin<'a>(&'a TaskStream);

impl Pin<'_> {
    /// Segments that stay as long as this; none of a settled log.
    fn segments(&self) -> Option<&Segments> {
        // SAFETY: this was counted before it looks for them.
        unsafe { self.0.segments.get() }
    }

    /// Segments that stay for longer.
    fn hold(&self) -> Option<Held> {
        // SAFETY: as above.
        unsafe { self.0.segments.hold() }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.unpin();
    }
}

/// Keeps the log alive and counts one write in flight.
struct InFlight(Arc<TaskStream>);

impl InFlight {
    fn new(stream: &Arc<TaskStream>) -> InFlight {
        std::mem::forget(stream.pin());
        InFlight(stream.clone())
    }

    /// Segments that stay as long as this; none of a settled log.
    fn segments(&self) -> Option<&Segments> {
        // SAFETY: this was counted before it looks for them.
        unsafe { self.0.segments.get() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.unpin();
    }
}

/// Committed bytes of a log, to be written as they are. Drop it when they are written: cancel waits for that.
pub struct Span {
    ptr: *const u8,
    len: usize,
    _guard: InFlight,
}

impl Span {
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` and `len` came from one finished slice, in segments that are not let go of while the guard lasts or in the
        // settled form, which lives as long as the stream.
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
mod tests;
