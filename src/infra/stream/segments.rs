//! Memory of a log while it is written: segments that never move, each but the first twice as long as the one before.
//!
//! Only finished bytes are ever handed out. Which those are, the log's committed position says; this file does the
//! pointer work, and trusts that position.

// Hands out slices of memory that another thread is still filling further on.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

/// First segment: most logs need no other. Each further one is twice as long up to `SEGMENT_LEN_MAX`. Together 32 MiB: more
/// than the frames of any context this server admits.
pub(super) const SEGMENT_LEN_FIRST: usize = 2 * 1024;
const SEGMENT_LEN_MAX: usize = 4 * 1024 * 1024;
pub(super) const SEGMENT_COUNT: usize = 19;

/// A place in the log: segment and offset in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Position {
    pub segment: u32,
    pub offset: u32,
}

impl Position {
    pub const START: Position = Position { segment: 0, offset: 0 };

    /// In 39 bits.
    pub fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    pub fn unpack(value: u64) -> Position {
        Position { segment: (value >> 32) as u32 & 0x7f, offset: value as u32 }
    }
}

/// A byte that is written at most once, and read by nobody before.
type Cell = UnsafeCell<MaybeUninit<u8>>;

/// The first segment lies in the struct itself: one allocation, of which only the pages and lines are touched that are
/// written.
pub(super) struct Segments {
    /// Bytes in use, known when the writer has moved on.
    first_used: AtomicU32,
    /// Apart, as half a kilobyte that a log of one segment has no use for.
    further: OnceLock<Box<FurtherAll>>,
    first: [Cell; SEGMENT_LEN_FIRST],
}

type FurtherAll = [OnceLock<Further>; SEGMENT_COUNT - 1];

struct Further {
    used: AtomicU32,
    cells: Box<[Cell]>,
}

// SAFETY: bytes at and past the committed position belong to the one writer; bytes before it are never written again and
// may be read by anyone who has loaded that position.
unsafe impl Sync for Segments {}
// SAFETY: as above.
unsafe impl Sync for Further {}

/// Why there is no room: the last segment is full.
pub(super) struct NoRoom;

/// Memory of logs that are settled, for those that begin: the latest first, which is still in the caches.
static SPARE: Mutex<Vec<Arc<Segments>>> = Mutex::new(Vec::new());

/// At most so many: with the lists of the long ones, two thirds of a mebibyte.
const SPARE_MAX: usize = 256;

/// One of those who hold a log's segments. The last to let go of them lays them aside for another log.
#[derive(Clone)]
pub(super) struct Held(Arc<Segments>);

/// Where a log's segments are found, or none.
pub(super) struct Place(AtomicPtr<Segments>);

impl Place {
    pub fn empty() -> Place {
        Place(AtomicPtr::new(ptr::null_mut()))
    }

    pub fn of(held: Held) -> Place {
        let held = ManuallyDrop::new(held);
        // SAFETY: `held` is not used again, nor dropped.
        let segments = unsafe { ptr::read(&raw const held.0) };
        Place(AtomicPtr::new(Arc::into_raw(segments).cast_mut()))
    }

    /// # Safety
    ///
    /// What is found must not be let go of while the reference lasts.
    pub unsafe fn get<'a>(&self) -> Option<&'a Segments> {
        // SAFETY: the pointer is null or an `Arc`'s, which lives by the caller's word.
        unsafe { self.0.load(SeqCst).as_ref() }
    }

    /// # Safety
    ///
    /// What is found must not be let go of during the call.
    pub unsafe fn hold(&self) -> Option<Held> {
        let found = self.0.load(SeqCst);
        if found.is_null() {
            return None;
        }
        // SAFETY: the pointer is an `Arc`'s, which lives by the caller's word.
        unsafe { Arc::increment_strong_count(found) };
        // SAFETY: that count is this one's.
        Some(Held(unsafe { Arc::from_raw(found) }))
    }

    /// Moves what is here to a place where nothing is. From then on it is not found here.
    pub fn move_to(&self, other: &Place) {
        let found = self.0.swap(ptr::null_mut(), SeqCst);
        let before = other.0.swap(found, SeqCst);
        assert!(before.is_null(), "a log's segments are retired once");
    }

    pub fn is_taken(&self) -> bool {
        !self.0.load(SeqCst).is_null()
    }

    pub fn take(&self) -> Option<Held> {
        let found = self.0.swap(ptr::null_mut(), SeqCst);
        // SAFETY: the pointer came from an `Arc`, and whoever swaps it out has it alone.
        (!found.is_null()).then(|| Held(unsafe { Arc::from_raw(found) }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl Held {
    /// Segments of an empty log.
    pub fn fresh() -> Held {
        let spare = SPARE.lock().expect("nothing panics under this lock").pop();
        Held(spare.unwrap_or_else(Segments::new))
    }

    #[cfg(test)]
    pub fn downgrade(&self) -> std::sync::Weak<Segments> {
        Arc::downgrade(&self.0)
    }
}

impl Deref for Held {
    type Target = Segments;

    fn deref(&self) -> &Segments {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nearly always there are others, and to look costs less than to claim them. Of two who let go at the same time each may
        // see the other: then they are freed.
        if Arc::strong_count(&self.0) > 1 {
            return;
        }
        let Some(segments) = Arc::get_mut(&mut self.0) else { return };
        segments.first_used = AtomicU32::new(0);
        // They were taken in this order: the rest of the list is not even looked at. The list itself stays.
        if let Some(further) = segments.further.get_mut() {
            further.iter_mut().map_while(OnceLock::take).for_each(drop);
        }
        let mut spare = SPARE.lock().expect("nothing panics under this lock");
        if spare.len() < SPARE_MAX {
            spare.push(self.0.clone());
        }
    }
}

impl Segments {
    fn new() -> Arc<Segments> {
        let mut segments = Arc::<Segments>::new_uninit();
        let place = Arc::get_mut(&mut segments).expect("nobody else has it yet").as_mut_ptr();
        // SAFETY: `place` is valid for writes, and with these two every field is initialised: `first` may hold anything.
        unsafe {
            ptr::addr_of_mut!((*place).first_used).write(AtomicU32::new(0));
            ptr::addr_of_mut!((*place).further).write(OnceLock::new());
            segments.assume_init()
        }
    }

    /// A segment's cells and how many are in use; none where the log has not come to.
    fn segment(&self, index: usize) -> Option<(&[Cell], &AtomicU32)> {
        match index.checked_sub(1) {
            None => Some((&self.first, &self.first_used)),
            Some(place) => self.further.get()?[place].get().map(|segment| (&*segment.cells, &segment.used)),
        }
    }

    /// The segment that `at` is in.
    fn cells(&self, at: Position) -> Cells {
        let (cells, _) = self.segment(at.segment as usize).expect("the log has come to it");
        Cells { segment: at.segment, len: cells.len() as u32, start: cells.as_ptr() }
    }

    /// Where a frame of `len` bytes goes: frames never wrap, so a segment's rest may stay unused. `cells` are brought there.
    ///
    /// # Errors
    ///
    /// Past the last segment.
    pub fn room_for(&self, at: Position, len: usize, cells: &mut Cells) -> Result<Position, NoRoom> {
        if cells.segment == at.segment && at.offset as usize + len <= cells.len as usize {
            return Ok(at);
        }
        *cells = self.cells(at);
        if at.offset as usize + len <= cells.len as usize {
            return Ok(at);
        }
        let index = at.segment as usize;
        if index + 1 == SEGMENT_COUNT {
            return Err(NoRoom);
        }
        let (_, used) = self.segment(index).expect("the writer is in it");
        used.store(at.offset, SeqCst);
        let further = self.further.get_or_init(|| Box::new([const { OnceLock::new() }; SEGMENT_COUNT - 1]));
        further[index].get_or_init(|| Further::new(index + 1, len));
        let at = Position { segment: at.segment + 1, offset: 0 };
        *cells = self.cells(at);
        Ok(at)
    }

    /// Finished bytes from `at` to the end of its segment or of what is committed, and where they end. `cells` are brought there.
    pub fn slice_from(&self, mut at: Position, committed: Position, cells: &mut Cells) -> Option<(&[u8], Position)> {
        while at < committed {
            let end = match at.segment == committed.segment {
                true => committed.offset,
                false => self.segment(at.segment as usize).expect("a committed segment exists").1.load(SeqCst),
            };
            if at.offset == end {
                at = Position { segment: at.segment + 1, offset: 0 };
                continue;
            }
            if cells.segment != at.segment {
                *cells = self.cells(at);
            }
            // SAFETY: all of it lies before the committed position, so it was written and the writer will not touch it again; the
            // cells are this log's, and live as long as `self`.
            let slice = unsafe { cells.finished(at.offset, end) };
            return Some((slice, Position { segment: at.segment, offset: end }));
        }
        None
    }
}

/// One segment's cells, kept by whoever works there: the list of segments is another cache line, and so is what it points to.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    segment: u32,
    len: u32,
    start: *const Cell,
}

// SAFETY: a pointer that is followed only by the word of who calls the functions below.
unsafe impl Send for Cells {}

impl Cells {
    /// None yet.
    pub const NONE: Cells = Cells { segment: u32::MAX, len: 0, start: ptr::null() };

    /// Writes a frame where `room_for` has found room.
    ///
    /// # Safety
    ///
    /// The segments live, the place lies past the committed position, and nobody else writes.
    pub unsafe fn write(self, at: Position, frame: &[u8]) {
        assert!(
            at.segment == self.segment && at.offset as usize + frame.len() <= self.len as usize,
            "room_for was asked"
        );
        // SAFETY: it is within the segment, and by the caller's word nobody reads or writes these cells now; UnsafeCell allows it
        // to us.
        unsafe {
            let to = self.start.add(at.offset as usize) as *mut u8;
            ptr::copy_nonoverlapping(frame.as_ptr(), to, frame.len());
        }
    }

    /// # Safety
    ///
    /// The segments live as long as the slice, and it was committed.
    unsafe fn finished<'a>(self, from: u32, to: u32) -> &'a [u8] {
        assert!(from <= to && to <= self.len, "a log goes on");
        // SAFETY: it is within the segment and, by the caller's word, written and left alone; a cell has the layout of u8.
        unsafe { std::slice::from_raw_parts(self.start.add(from as usize).cast::<u8>(), (to - from) as usize) }
    }
}

impl Further {
    fn new(index: usize, at_least: usize) -> Further {
        let len = (SEGMENT_LEN_FIRST << index.min(16)).min(SEGMENT_LEN_MAX).max(at_least);
        // SAFETY: a cell may hold anything.
        let cells = unsafe { Box::<[Cell]>::new_uninit_slice(len).assume_init() };
        Further { used: AtomicU32::new(0), cells }
    }
}
