//! One answer from another thread to a waiting connection.

use std::sync::{Arc, Mutex};
use std::task::Poll;

use super::inbox::{WakeAddress, WakeHub};
use super::wake::Wake;

struct Shared<T> {
    state: Mutex<State<T>>,
    hub: WakeHub,
    address: WakeAddress,
}

enum State<T> {
    Awaited,
    Sent(T),
    /// The answer was taken, or its sender is gone.
    Over,
}

/// The other thread's end. Dropping it without an answer tells the receiver so.
pub struct Sender<T>(Arc<Shared<T>>);

/// The connection's end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// A pair for one answer to the connection at `address`.
pub fn oneshot<T: Send>(hub: &WakeHub, address: WakeAddress) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Awaited), hub: hub.clone(), address });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Gives the answer and wakes the connection.
    pub fn send(self, answer: T) {
        *self.0.state.lock().expect("nothing panics under this lock") = State::Sent(answer);
        self.0.hub.wake_answered(self.0.address);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().expect("nothing panics under this lock");
        if matches!(*state, State::Awaited) {
            *state = State::Over;
            drop(state);
            self.0.hub.wake_answered(self.0.address);
        }
    }
}

impl<T> Receiver<T> {
    /// The answer; none when the sender was dropped without one. `wake` is the slot at the pair's address.
    pub async fn recv(self, wake: &Wake) -> Option<T> {
        debug_assert_eq!(wake.address(), self.0.address);
        loop {
            if let Poll::Ready(answer) = self.take() {
                return answer;
            }
            wake.wait().await;
        }
    }

    fn take(&self) -> Poll<Option<T>> {
        let mut state = self.0.state.lock().expect("nothing panics under this lock");
        match std::mem::replace(&mut *state, State::Over) {
            State::Sent(answer) => Poll::Ready(Some(answer)),
            State::Over => Poll::Ready(None),
            State::Awaited => {
                *state = State::Awaited;
                Poll::Pending
            }
        }
    }
}
