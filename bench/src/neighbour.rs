//! Another's work on the same processor: busy for a while, then asleep for a while, for as long as it is let.

use std::time::{Duration, Instant};

use clap::Args;

#[derive(Args)]
pub struct Options {
    /// Microseconds of work at a stretch.
    #[arg(long, default_value_t = 5_000)]
    pub busy_us: u64,
    /// Microseconds of sleep between them.
    #[arg(long, default_value_t = 5_000)]
    pub idle_us: u64,
    /// Ends by itself after so many seconds, so that it never outlives who forgot it.
    #[arg(long, default_value_t = 600.0)]
    pub seconds: f64,
}

/// Works and sleeps in turns. Who takes the processor away meanwhile takes work away, not sleep: work is counted in time that
/// has passed, as that of a frame or of a control loop is.
///
/// # Errors
///
/// When the time is no length of time.
pub fn run(options: &Options) -> Result<(), String> {
    let whole = Duration::try_from_secs_f64(options.seconds).map_err(|e| format!("--seconds: {e}"))?;
    let (busy, idle) = (Duration::from_micros(options.busy_us), Duration::from_micros(options.idle_us));
    let began = Instant::now();
    while began.elapsed() < whole {
        let stretch = Instant::now();
        while stretch.elapsed() < busy {
            std::hint::spin_loop();
        }
        std::thread::sleep(idle);
    }
    Ok(())
}
