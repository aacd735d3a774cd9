//! Sockets: accept, read, write, timers, and being woken by other threads. Knows no routes and no services.
//!
//! One reactor is one thread with its own runtime (io_uring, or epoll where the kernel forbids that) and its
//! own listeners. Other threads reach it through its `Inbox` alone.

mod buffer;
mod connection;
mod driver;
mod guard;
mod inbox;
mod intake;
mod listener;
mod oneshot;
mod outbound;
mod socket;
mod stats;
mod stop;
mod stream_writer;
#[cfg(test)]
mod tests;
mod view_writer;
mod wake;

pub use driver::{Driver, detect_driver};
pub use inbox::{Inbox, WakeAddress, WakeHub};
pub use listener::{ReactorConfig, run};
pub use oneshot::{Receiver, Sender, oneshot};
pub use socket::{bind, raise_descriptor_limit};
pub use stats::ReactorStats;
pub use stop::Stop;
pub use wake::Wake;

use std::future::Future;
use std::time::Duration;

use super::http::{HttpError, RequestHead, Response};
use super::stream::StreamReader;

/// Bytes of body that a route takes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(pub usize);

/// What a request is answered with.
pub enum Reply {
    Full(Response),
    /// A head, then the log of a task until its end.
    Stream {
        head: Response,
        reader: StreamReader,
    },
    /// The logs of some tasks in another form than their own, as they grow or all at once.
    View {
        /// Sent at once, and then the view's bytes as they come; without it the view answers when all logs have ended.
        head: Option<Response>,
        readers: Vec<StreamReader>,
        view: Box<dyn View>,
    },
}

/// What one client is shown of tasks' logs. Dropped when the client is gone or has everything.
pub trait View {
    /// Takes whole events of log number `source`, as the log holds them, and appends what the client is sent for them.
    fn events(&mut self, source: usize, frames: &[u8], out: &mut Vec<u8>);

    /// All logs have ended: what comes after everything else.
    fn finish(&mut self, out: &mut Vec<u8>);

    /// The answer, of a view that is not sent as it grows.
    fn answer(&mut self) -> Response;

    /// A sign of life for a connection that nothing was sent on for `patience`.
    fn silence(&mut self, out: &mut Vec<u8>);

    /// How long nothing may be sent; none: the reactor's own heartbeat.
    fn patience(&self) -> Option<Duration>;
}

/// What answers requests. One per reactor, never shared between threads.
pub trait Service: 'static {
    /// As soon as the head is in, before the body is read: may this request go on?
    ///
    /// # Errors
    ///
    /// The answer of a request that may not.
    fn on_head(&self, head: &RequestHead<'_>) -> Result<BodyLimit, Response>;

    /// Head and whole body are in. `body` is the connection's own buffer, to be parsed in place.
    fn call(&self, head: &RequestHead<'_>, body: &mut [u8], wake: &Wake) -> impl Future<Output = Reply>;

    /// The answer for what never became a request.
    fn refuse(&self, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response;
}
