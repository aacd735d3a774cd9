//! Helper threads for work that does not belong on a reactor: disk, long prompts.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

/// Jobs that may wait. A reactor never waits for a place: it is told that there is none.
const JOBS_MAX: usize = 4096;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads and a bounded queue of jobs.
#[derive(Clone)]
pub struct Helpers(SyncSender<Job>);

/// Every helper is busy and the queue is full.
#[derive(Debug)]
pub struct HelpersBusy;

impl Helpers {
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn spawn(threads: usize) -> std::io::Result<Helpers> {
        let (sender, receiver) = sync_channel(JOBS_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..threads {
            let receiver = receiver.clone();
            std::thread::Builder::new().name(format!("helper-{index}")).spawn(move || work(&receiver))?;
        }
        Ok(Helpers(sender))
    }

    /// Hands a job over.
    ///
    /// # Errors
    ///
    /// When `JOBS_MAX` jobs are waiting.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), HelpersBusy> {
        self.0.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => HelpersBusy,
        })
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = receiver.lock().expect("no job runs under this lock").recv();
        let Ok(job) = job else { return };
        // A job that panics has lost its answer, which its requester sees; the helper goes on.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a helper's job panicked");
        }
    }
}
