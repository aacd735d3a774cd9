//! What a device can do at most, through the same calls as the backend's: read memory, and start kernels.

use std::time::Instant;

use super::device::{Arguments, Device, Launches, Use};
use crate::backend::DeviceError;
use crate::testing::Dice;

/// Threads and chunks of sixteen bytes of `read_all` in `engine/kernels/read.cu`.
const READ_THREADS: usize = 256;
/// Chunks that a block of threads reads, tried one after the other. Multiples of what one turn of its loop reads.
const SPANS: [usize; 3] = [2048, 8192, 32768];
/// Passes between two waits, so that waiting is next to nothing of them.
const PASSES: usize = 4;
/// Measurements of each span.
const ROUNDS: usize = 5;
/// Random bytes that are made; memory holds them again and again.
const MADE_BYTES: usize = 64 << 20;
/// Launches between two waits.
const CHAIN_LEN: usize = 100;

/// How fast memory is read by a kernel that does nothing else, bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadSpeed {
    /// The fastest measurement: what shares are told of.
    pub best: f64,
    /// The median of those of the same span.
    pub median: f64,
    /// Bytes that a block of threads read in it.
    pub span_bytes: usize,
}

/// Microseconds of a launch that does nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaunchCost {
    /// Of one and the wait for it. Median.
    pub alone_us: f64,
    /// Of one among a hundred, with one wait for all. Median.
    pub chained_us: f64,
    /// The same of a list that comes again and again, as a model's steps do. Median.
    pub listed_us: f64,
}

/// Reads random memory of this size, several times over and in several ways.
///
/// # Errors
///
/// When the device fails, has no such room, or did not read all of it.
///
/// # Panics
///
/// When `bytes` are no power of two or under 64 KiB.
pub fn read_speed<D: Device>(device: &D, bytes: usize) -> Result<ReadSpeed, DeviceError> {
    assert!(bytes.is_power_of_two() && bytes >= 1 << 16, "spans are whole and there is one at least");
    let memory = Room::new(device, bytes)?;
    let spans: Vec<usize> = SPANS.into_iter().filter(|span| span * 16 <= bytes).collect();
    let most_blocks = bytes / 16 / spans[0];
    let words_of_block = READ_THREADS / 32;
    let sums = Room::new(device, most_blocks * words_of_block * 4)?;
    let mut dice = Dice::new(7);
    let made: Vec<u8> = (0..MADE_BYTES.min(bytes) / 8).flat_map(|_| dice.next_u64().to_le_bytes()).collect();
    for start in (0..bytes).step_by(made.len()) {
        device.upload(memory.address + start as u64, &made)?;
    }
    let once = sum(&made).wrapping_mul((bytes / made.len()) as u32);
    let mut fastest: Option<ReadSpeed> = None;
    for span in spans {
        let blocks = bytes / 16 / span;
        let pass = || {
            let arguments = Arguments::new().pointer(sums.address).pointer(memory.address).int(span);
            device.launch("read_all", [blocks as u32, 1, 1], READ_THREADS as u32, 0, &arguments)
        };
        // The first pass loads the kernel, and says whether it reads everything.
        pass()?;
        let mut said = vec![0; blocks * words_of_block * 4];
        device.download(sums.address, &mut said)?;
        if sum(&said) != once {
            return Err(DeviceError(format!("a pass over {bytes} bytes did not read what they hold")));
        }
        let mut speeds = Vec::new();
        for _ in 0..ROUNDS {
            let seconds = seconds_of(device, sums.address, || (0..PASSES).try_for_each(|_| pass()))?;
            speeds.push((PASSES * bytes) as f64 / seconds);
        }
        speeds.sort_by(f64::total_cmp);
        let found = ReadSpeed { best: speeds[ROUNDS - 1], median: speeds[ROUNDS / 2], span_bytes: span * 16 };
        fastest = Some(fastest.filter(|f| f.best >= found.best).unwrap_or(found));
    }
    Ok(fastest.expect("there is a span"))
}

/// Starts kernels that do nothing.
///
/// # Errors
///
/// When the device fails.
pub fn launch_cost<D: Device>(device: &D) -> Result<LaunchCost, DeviceError> {
    let word = Room::new(device, 16)?;
    device.clear(word.address, 16)?;
    let arguments = Arguments::new().pointer(word.address);
    let launch = || device.launch("nothing", [1, 1, 1], 32, 0, &arguments);
    let mut list = Launches::default();
    (0..CHAIN_LEN).for_each(|_| list.push("nothing", [1, 1, 1], 32, 0, &arguments));
    let median = |count: usize, ask: &dyn Fn() -> Result<(), DeviceError>| {
        let mut all = Vec::new();
        // The first ones load the kernel, and make of a list what it will be; they are left out.
        for round in 0..13 {
            let seconds = seconds_of(device, word.address, ask)?;
            if round > 2 {
                all.push(seconds * 1e6 / count as f64);
            }
        }
        all.sort_by(f64::total_cmp);
        Ok::<_, DeviceError>(all[all.len() / 2])
    };
    Ok(LaunchCost {
        alone_us: median(1, &launch)?,
        chained_us: median(CHAIN_LEN, &|| (0..CHAIN_LEN).try_for_each(|_| launch()))?,
        listed_us: median(CHAIN_LEN, &|| device.run(&list))?,
    })
}

/// Memory of the device, given back when dropped.
struct Room<'a, D: Device> {
    device: &'a D,
    address: u64,
    bytes: usize,
}

impl<D: Device> Room<'_, D> {
    fn new(device: &D, bytes: usize) -> Result<Room<'_, D>, DeviceError> {
        Ok(Room { device, address: device.alloc(bytes, Use::Workspace)?, bytes })
    }
}

impl<D: Device> Drop for Room<'_, D> {
    fn drop(&mut self) {
        self.device.free(self.address, self.bytes);
    }
}

/// How long it takes until everything that `ask` asks for is done.
fn seconds_of<D: Device>(
    device: &D,
    word: u64,
    ask: impl FnOnce() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut said = [0; 4];
    device.download(word, &mut said)?;
    let start = Instant::now();
    ask()?;
    device.download(word, &mut said)?;
    Ok(start.elapsed().as_secs_f64())
}

/// The sum of little-endian words of 32 bits.
fn sum(bytes: &[u8]) -> u32 {
    bytes.as_chunks::<4>().0.iter().fold(0, |sum, word| sum.wrapping_add(u32::from_le_bytes(*word)))
}
