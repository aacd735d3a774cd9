//! A connection's bytes on their way in: what has arrived, what of it is used up, and a read under way.
//!
//! The kernel owns the buffer of a read under way, and a read that is dropped takes its buffer along. So what
//! has arrived is never lent out with it: only an empty buffer is, and otherwise a spare one.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use monoio::io::{AsyncReadRent, OwnedReadHalf};
use monoio::net::TcpStream;

/// Bytes read at once at first; most requests fit.
const READ_LEN: usize = 4 * 1024;

/// Bytes read at once into a body that has grown long.
const READ_LEN_MAX: usize = 128 * 1024;

/// Bytes read at once beside a stream: there, reading serves to notice that the peer is gone.
const ASIDE_LEN: usize = 256;

/// Memory that a connection may keep between requests.
const KEPT_LEN: usize = 16 * 1024;

type Half = OwnedReadHalf<TcpStream>;
type Read = Pin<Box<dyn Future<Output = (Half, io::Result<usize>, Vec<u8>)>>>;

enum Reader {
    Idle(Half),
    /// A read that outlives the wait it was begun in.
    Pending(Read),
    /// Between the two; never seen from outside.
    Moving,
}

/// The read side of a connection.
pub(super) struct Inbound {
    reader: Reader,
    bytes: Vec<u8>,
    spare: Vec<u8>,
    /// Bytes at the front that belong to requests already answered.
    used: usize,
    ended: bool,
}

impl Inbound {
    pub(super) fn new(half: Half) -> Inbound {
        Inbound { reader: Reader::Idle(half), bytes: Vec::new(), spare: Vec::new(), used: 0, ended: false }
    }

    /// What has arrived and is not used up.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// The peer has sent its last byte.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Marks the first `len` bytes as used up.
    pub(super) fn consume(&mut self, len: usize) {
        self.used += len;
        assert!(self.used <= self.bytes.len(), "more was used than had arrived");
        if self.used == self.bytes.len() {
            self.used = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_LEN {
                self.bytes = Vec::new();
            }
            if self.spare.capacity() > KEPT_LEN {
                self.spare = Vec::new();
            }
        }
    }

    /// Takes out what lies from `from` to `to`: a chunked body closes its gaps as it arrives.
    pub(super) fn remove(&mut self, from: usize, to: usize) {
        self.bytes.drain(self.used + from..self.used + to);
    }

    /// Gives memory back that a connection does not need while nothing is asked of it.
    pub(super) fn release(&mut self) {
        if self.len() == 0 {
            (self.bytes, self.spare, self.used) = (Vec::new(), Vec::new(), 0);
        }
    }

    /// Reads more; 0 is the end. May be dropped half-way: what had arrived before stays.
    ///
    /// # Errors
    ///
    /// As the socket's.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        let (len, capacity) = (self.len(), self.bytes.capacity());
        let Reader::Idle(half) = &mut self.reader else {
            return poll_fn(|context| self.poll_read(context)).await;
        };
        let mut room = std::mem::take(if len == 0 { &mut self.bytes } else { &mut self.spare });
        if len == 0 {
            self.used = 0;
        }
        room.clear();
        // A body that has grown long will grow longer.
        room.reserve(if len == 0 { capacity.max(READ_LEN) } else { len.clamp(READ_LEN, READ_LEN_MAX) });
        let (result, room) = half.read(room).await;
        if len == 0 {
            self.bytes = room;
        } else {
            self.append(&room);
            self.spare = room;
        }
        self.took(result)
    }

    /// Polls a read that stays under way when this returns `Pending`.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Reader::Idle(_) = self.reader {
            let Reader::Idle(mut half) = std::mem::replace(&mut self.reader, Reader::Moving) else { unreachable!() };
            self.reader = Reader::Pending(Box::pin(async move {
                let (result, bytes) = half.read(Vec::with_capacity(ASIDE_LEN)).await;
                (half, result, bytes)
            }));
        }
        let Reader::Pending(read) = &mut self.reader else { unreachable!("a read was lost") };
        let Poll::Ready((half, result, bytes)) = read.as_mut().poll(context) else { return Poll::Pending };
        self.reader = Reader::Idle(half);
        self.append(&bytes);
        Poll::Ready(self.took(result))
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn took(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        self.ended |= matches!(result, Ok(0));
        result
    }
}
