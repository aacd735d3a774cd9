//! Tasks' logs on their way to one client, in another form than their own.
//!
//! The log's memory cannot be written as it is: what the client is sent is made here, on the reactor, from what the log
//! holds. The engine thread and every other reader know nothing of it.

use std::time::Duration;

use super::connection::{Connection, Outline};
use super::outbound::Closed;
use super::stream_writer::{Event, Silence};
use super::{Service, View};
use crate::infra::http::response::{Framing, Persistence};
use crate::infra::http::{Response, sse};
use crate::infra::stream::{Claim, Span, StreamReader};

/// Bytes of logs that are taken before what they mean is written: a reader that comes late has its turn, no more.
const TAKEN_MAX: usize = 64 * 1024;

/// Readers that have come to the end of their log are gone.
struct Readers(Vec<Option<StreamReader>>);

impl Readers {
    /// Hands new events to the view, and gives the spans that they lie in: they count as being written.
    fn take(&mut self, view: &mut dyn View, out: &mut Vec<u8>) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut taken = 0;
        for (source, place) in self.0.iter_mut().enumerate() {
            while let Some(reader) = place {
                match reader.claim() {
                    Claim::Bytes(span) => {
                        view.events(source, span.as_slice(), out);
                        taken += span.as_slice().len();
                        spans.push(span);
                        if taken >= TAKEN_MAX {
                            return spans;
                        }
                    }
                    Claim::Wait => break,
                    Claim::Done => *place = None,
                }
            }
        }
        spans
    }

    fn are_done(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn aborted(&self) -> bool {
        self.0.iter().flatten().any(StreamReader::aborted)
    }
}

impl<S: Service> Connection<S> {
    /// Sends the head and what the view makes of the logs as they grow; without a head, the view's answer at the end.
    pub(super) async fn view(
        &mut self,
        head: Option<Response>,
        readers: Vec<StreamReader>,
        mut view: Box<dyn View>,
        outline: Outline,
    ) -> Result<(), Closed> {
        let mut readers = Readers(readers.into_iter().map(Some).collect());
        self.inbound.release();
        let Some(head) = head else {
            self.gather(&mut readers, &mut *view).await?;
            let response = view.answer();
            let persistence = self.persistence(outline);
            return self.answer(response, persistence, outline.is_head).await;
        };
        let unframed = outline.without_chunks;
        let persistence = if unframed { Persistence::Closed } else { self.persistence(outline) };
        self.write_head(&head, persistence, if unframed { Framing::Close } else { Framing::Chunked });
        let mut silence = Silence::Begins;
        let mut payload = Vec::new();
        loop {
            payload.clear();
            let spans = readers.take(&mut *view, &mut payload);
            let done = readers.are_done();
            if done {
                view.finish(&mut payload);
            }
            match unframed {
                true => self.outbound.bytes.extend_from_slice(&payload),
                false => sse::write_chunk(&mut self.outbound.bytes, &payload),
            }
            if done && !unframed {
                self.outbound.bytes.extend_from_slice(sse::LAST_CHUNK);
            }
            let more = !spans.is_empty();
            if !self.outbound.bytes.is_empty() {
                silence = Silence::Begins;
                self.outbound.flush_copy(spans, &self.wake, || readers.aborted()).await?;
            }
            if done {
                break;
            }
            if readers.aborted() {
                return Err(Closed::Abort);
            }
            if more {
                continue;
            }
            let patience = view.patience().unwrap_or(self.shared.config.heartbeat);
            match self.wait_for_more(&mut silence, patience).await {
                Event::Posted | Event::PeerSent => {}
                Event::PeerGone => return Err(Closed::Quietly),
                Event::Silence => {
                    silence = Silence::Begins;
                    payload.clear();
                    view.silence(&mut payload);
                    match unframed {
                        true => self.outbound.bytes.extend_from_slice(&payload),
                        false => sse::write_chunk(&mut self.outbound.bytes, &payload),
                    }
                }
            }
        }
        self.wake.relax();
        match persistence == Persistence::Closed || self.shared.stop.is_ending() {
            true => Err(Closed::AfterAnswer),
            false => Ok(()),
        }
    }

    /// Lets the view see the logs to their end. A client that leaves meanwhile is noticed.
    async fn gather(&mut self, readers: &mut Readers, view: &mut dyn View) -> Result<(), Closed> {
        let mut nothing = Vec::new();
        let mut silence = Silence::Begins;
        loop {
            let spans = readers.take(view, &mut nothing);
            nothing.clear();
            if readers.are_done() {
                self.wake.relax();
                return Ok(());
            }
            if !spans.is_empty() {
                continue;
            }
            if readers.aborted() {
                return Err(Closed::Abort);
            }
            if let Event::PeerGone = self.wait_for_more(&mut silence, Duration::MAX).await {
                return Err(Closed::Quietly);
            }
        }
    }
}
