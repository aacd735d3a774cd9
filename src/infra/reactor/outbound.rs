//! A connection's bytes on their way out, and the ways to end it.

// A buffer that the kernel reads from says where its bytes are.
#![allow(unsafe_code)]

use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{AsyncWriteRent, OwnedWriteHalf};
use monoio::net::TcpStream;

use super::socket::reset;
use super::wake::Wake;

/// Memory that a connection may keep between answers.
const KEPT_LEN: usize = 16 * 1024;

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Closed {
    /// Nothing more is to be said.
    Quietly,
    /// An answer was written that the peer may not have read yet.
    AfterAnswer,
    /// The peer does not read, or must not get what is under way.
    Abort,
}

/// The write side of a connection.
pub(super) struct Outbound {
    writer: OwnedWriteHalf<TcpStream>,
    descriptor: RawFd,
    /// What is to be written next; kept for its memory.
    pub(super) bytes: Vec<u8>,
    patience: Duration,
}

impl Outbound {
    pub(super) fn new(writer: OwnedWriteHalf<TcpStream>, descriptor: RawFd, patience: Duration) -> Outbound {
        Outbound { writer, descriptor, bytes: Vec::new(), patience }
    }

    /// Writes `bytes`, and clears it.
    pub(super) async fn flush(&mut self, wake: &Wake) -> Result<(), Closed> {
        let bytes = std::mem::take(&mut self.bytes);
        let bytes = self.write(bytes, wake, || false).await?;
        self.keep(bytes);
        Ok(())
    }

    /// Writes `bytes`, unless `give_up`. `kept` is dropped when the kernel has let go of them: spans that were copied
    /// into them count as being written until then.
    pub(super) async fn flush_copy<K: Unpin + 'static>(
        &mut self,
        kept: K,
        wake: &Wake,
        give_up: impl Fn() -> bool,
    ) -> Result<(), Closed> {
        let copy = Copy { bytes: std::mem::take(&mut self.bytes), _kept: kept };
        let copy = self.write(copy, wake, give_up).await?;
        self.keep(copy.bytes);
        Ok(())
    }

    /// Writes all of a buffer. The peer must take some of it in every `patience`; a write that is given up
    /// keeps its buffer until the kernel has let go of it.
    pub(super) async fn write<T: IoBuf>(
        &mut self,
        mut buffer: T,
        wake: &Wake,
        give_up: impl Fn() -> bool,
    ) -> Result<T, Closed> {
        let len = buffer.bytes_init();
        let mut written = 0;
        while written < len {
            let mut writing = pin!(self.writer.write(buffer.slice(written..len)));
            wake.allow(self.patience);
            let done = poll_fn(|context| {
                if let Poll::Ready(done) = writing.as_mut().poll(context) {
                    return Poll::Ready(Ok(done));
                }
                wake.register(context);
                if give_up() || wake.is_late() { Poll::Ready(Err(Closed::Abort)) } else { Poll::Pending }
            })
            .await;
            wake.relax();
            let (result, slice) = done?;
            buffer = slice.into_inner();
            match result {
                Ok(0) => return Err(Closed::Quietly),
                Ok(len) => written += len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed::Quietly),
            }
        }
        Ok(buffer)
    }

    fn keep(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= KEPT_LEN {
            bytes.clear();
            self.bytes = bytes;
        }
    }

    /// Gives memory back that a connection does not need while nothing is to be written.
    pub(super) fn release(&mut self) {
        self.bytes = Vec::new();
    }

    /// Says that nothing more will come.
    pub(super) async fn finish(&mut self) -> std::io::Result<()> {
        self.writer.shutdown().await
    }

    /// Drops the connection at once, with a reset.
    pub(super) fn abort(&self) {
        reset(self.descriptor);
    }
}

/// Bytes, and what must live as long as the kernel has them.
struct Copy<K> {
    bytes: Vec<u8>,
    _kept: K,
}

// SAFETY: the bytes are on the heap, where they stay when this is moved, and nothing changes them while this
// is lent out.
unsafe impl<K: Unpin + 'static> IoBuf for Copy<K> {
    fn read_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.bytes.len()
    }
}
