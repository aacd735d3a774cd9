//! How a request comes in: its head, then its body, each within its time and its limit.

use super::connection::{Connection, Outline};
use super::outbound::Closed;
use super::{Service, buffer::Inbound, wake::Wake};
use crate::infra::http::chunked::ChunkedDecoder;
use crate::infra::http::{Body, HttpError, find_end};

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// A request's place in the inbound bytes.
pub(super) struct Extent {
    pub(super) body_len: usize,
    /// Head and body as they are still there, chunk sizes included.
    pub(super) total_len: usize,
}

pub(super) enum BodyError {
    Closed(Closed),
    Refused(HttpError),
}

/// How a wait for more bytes ended.
enum Arrival {
    Bytes,
    /// The peer has sent its last byte, or is gone.
    End,
    Late,
}

impl<S: Service> Connection<S> {
    /// Reads until a head is complete; its length.
    pub(super) async fn read_head(&mut self) -> Result<usize, Closed> {
        let mut scanned = 0;
        let mut began = false;
        let mut forgiven = false;
        self.wake.allow(self.shared.config.idle_timeout);
        loop {
            // One empty line before a request is forgiven: old clients send it after a body.
            if !forgiven && self.inbound.bytes().starts_with(b"\r\n") {
                self.inbound.consume(2);
                (forgiven, scanned) = (true, 0);
            }
            match find_end(self.inbound.bytes(), scanned, self.shared.config.head_len_max) {
                Ok(Some(head_len)) => {
                    self.wake.relax();
                    return Ok(head_len);
                }
                Ok(None) => scanned = self.inbound.len(),
                Err(error) => return self.refuse_and_close(&error).await,
            }
            if scanned > 0 && !began {
                began = true;
                self.wake.allow(self.shared.config.head_timeout);
            }
            match self.arrival(!began).await {
                Arrival::Bytes => {}
                Arrival::Late if began => {
                    let error = HttpError::new(408, "the head took too long: send it faster");
                    return self.refuse_and_close(&error).await;
                }
                Arrival::Late | Arrival::End => return Err(Closed::Quietly),
            }
        }
    }

    /// Reads until the body is complete, or over `limit`.
    pub(super) async fn read_body(&mut self, outline: Outline, limit: usize) -> Result<Extent, BodyError> {
        let head_len = outline.head_len;
        match outline.body {
            Body::None => Ok(Extent { body_len: 0, total_len: head_len }),
            Body::Length(len) if len > limit as u64 => Err(BodyError::Refused(TOO_LARGE)),
            Body::Length(len) => {
                let body_len = len as usize;
                let total_len = head_len + body_len;
                self.begin_body(outline).await?;
                while self.inbound.len() < total_len {
                    self.read_body_bytes().await?;
                }
                self.wake.relax();
                Ok(Extent { body_len, total_len })
            }
            Body::Chunked => {
                self.begin_body(outline).await?;
                let mut decoder = ChunkedDecoder::new(limit);
                while !decoder.decode(&mut self.inbound.bytes()[head_len..]).map_err(BodyError::Refused)? {
                    let gap = decoder.close_gap();
                    self.inbound.remove(head_len + gap.start, head_len + gap.end);
                    self.read_body_bytes().await?;
                }
                self.wake.relax();
                Ok(Extent { body_len: decoder.body_len(), total_len: head_len + decoder.consumed() })
            }
        }
    }

    /// Tells a client that waits for it to send its body, and starts the clock.
    async fn begin_body(&mut self, outline: Outline) -> Result<(), BodyError> {
        if outline.expects_continue && self.inbound.len() == outline.head_len {
            self.outbound.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.outbound.flush(&self.wake).await.map_err(BodyError::Closed)?;
        }
        self.wake.allow(self.shared.config.body_timeout);
        Ok(())
    }

    async fn read_body_bytes(&mut self) -> Result<(), BodyError> {
        match self.arrival(false).await {
            Arrival::Bytes => Ok(()),
            Arrival::End => Err(BodyError::Closed(Closed::Quietly)),
            Arrival::Late => {
                self.wake.relax();
                Err(BodyError::Refused(HttpError::new(408, "the body took too long: send it faster")))
            }
        }
    }

    /// Waits for more bytes until the deadline, or, between requests, until the reactor is ending.
    async fn arrival(&mut self, idle: bool) -> Arrival {
        let Connection { inbound, wake, shared, .. } = self;
        let is_over = || idle && shared.stop.is_ending();
        if is_over() { Arrival::End } else { arrival(inbound, wake, is_over).await }
    }
}

async fn arrival(inbound: &mut Inbound, wake: &Wake, is_over: impl Fn() -> bool) -> Arrival {
    let mut reading = pin!(inbound.read());
    poll_fn(|context| {
        if let Poll::Ready(result) = reading.as_mut().poll(context) {
            return Poll::Ready(if matches!(result, Ok(1..)) { Arrival::Bytes } else { Arrival::End });
        }
        wake.register(context);
        match () {
            () if is_over() => Poll::Ready(Arrival::End),
            () if wake.is_late() => Poll::Ready(Arrival::Late),
            () => Poll::Pending,
        }
    })
    .await
}

const TOO_LARGE: HttpError = HttpError::new(413, "the body is over the limit: send less, or raise body_len_max");
