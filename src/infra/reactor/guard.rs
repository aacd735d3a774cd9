//! A panic in one connection is that connection's end, not the reactor's.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// The future panicked; the panic hook has said where.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs a future to its end or its panic.
///
/// What the future shared with others may be half-changed by a panic. What the reactor itself shares between
/// connections is changed in single steps, so it is not; a service answers for its own.
///
/// The future lies with the caller: were it an argument here, every connection would have room for it twice.
pub(super) async fn caught<F: Future>(mut future: Pin<&mut F>) -> Result<F::Output, Panicked> {
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}
