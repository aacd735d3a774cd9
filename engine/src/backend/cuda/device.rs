//! What the CUDA backend needs of a device: memory, copies, launches, all in one order.
//!
//! The driver has it; so has the emulation that the tests build from the same kernels.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex};

use crate::backend::DeviceError;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Matrices, norms, biases.
    Weights,
    /// Keys and values.
    Kv,
    /// Everything else.
    Workspace,
}

/// A device and its one stream: everything happens in the order of the calls; `download` and `read` wait for all of it.
/// Kernels may be given addresses of what `host` gives and write there.
pub trait Device: Send + Sync {
    /// Memory of the host that the device copies numbers to.
    type Host: Deref<Target = [f32]> + Send;

    /// The address of `bytes` of memory that hold anything.
    ///
    /// # Errors
    ///
    /// When there is not so much left; the message has both sizes.
    fn alloc(&self, bytes: usize, purpose: Use) -> Result<u64, DeviceError>;

    /// Gives back what `alloc` gave.
    fn free(&self, address: u64, bytes: usize);

    /// Copies to the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Makes memory all zeros.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn clear(&self, address: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Waits for everything asked so far, then copies to the host.
    ///
    /// # Errors
    ///
    /// When the device fails, or has failed in what was asked before.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Memory of the host for `len` numbers.
    ///
    /// # Errors
    ///
    /// When there is not so much left.
    fn host(device: &Arc<Self>, len: usize) -> Result<Self::Host, DeviceError>;

    /// Waits for everything asked so far; then the first `len` numbers of `to` are those at `from`, put there by the device.
    /// With none it only waits.
    ///
    /// # Errors
    ///
    /// When the device fails, or has failed in what was asked before.
    fn read(&self, from: u64, len: usize, to: &mut Self::Host) -> Result<(), DeviceError>;

    /// Remembers for a lane, below `LANES`, what was asked so far. For a device that is done with everything when it was asked
    /// there is nothing to remember.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn mark(&self, lane: usize) -> Result<(), DeviceError> {
        let _ = lane;
        Ok(())
    }

    /// Waits for what was asked before the last `mark` of this lane. What was asked since may still be under way.
    ///
    /// # Errors
    ///
    /// When the device fails, or has failed in that.
    fn wait_for(&self, lane: usize) -> Result<(), DeviceError> {
        let _ = lane;
        Ok(())
    }

    /// Starts a kernel of `engine/kernels`, `grid` blocks of `threads` threads with `shared_bytes` of dynamic memory each.
    ///
    /// # Errors
    ///
    /// When there is no such kernel, or the device refuses or fails.
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &Arguments,
    ) -> Result<(), DeviceError>;

    /// Starts all kernels of a list, one after the other. A device may have a faster way for lists that it has seen before.
    ///
    /// # Errors
    ///
    /// As `launch`; what comes after the first that fails is not started.
    fn run(&self, list: &Launches) -> Result<(), DeviceError> {
        list.each().try_for_each(|l| self.launch(l.kernel, l.grid, l.threads, l.shared_bytes, &l.to_arguments()))
    }

    /// Names its arithmetic.
    fn arithmetic(&self) -> String;

    /// Processors that blocks are spread over: tiles are as large as leaves a block for each. Bits do not depend on it; memory
    /// for a step does. Where there is no device, it is one of the largest.
    fn processors(&self) -> usize {
        132
    }

    /// True for a device that only counts what is asked of it: nobody need read weights for it.
    fn only_counts(&self) -> bool {
        false
    }
}

/// Arguments of a launch, each in words of its own. A kernel takes under twelve, in twenty-four words at most.
///
/// It is inlined where launches are asked for, and small: each call takes and gives the whole, and a step has hundreds of
/// launches.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    words: [u64; Arguments::WORDS_MAX],
    starts: [u8; Arguments::COUNT_MAX],
    len: u8,
    count: u8,
}

impl Arguments {
    /// Most that a kernel takes.
    pub(super) const COUNT_MAX: usize = 12;
    const WORDS_MAX: usize = 24;

    /// None yet.
    #[inline(always)]
    pub fn new() -> Arguments {
        Arguments::default()
    }

    /// An address.
    #[must_use]
    #[inline(always)]
    pub fn pointer(self, address: u64) -> Arguments {
        self.structure(&[address])
    }

    /// A whole number of 32 bits.
    ///
    /// # Panics
    ///
    /// When it has more.
    #[must_use]
    #[inline(always)]
    pub fn int(self, value: usize) -> Arguments {
        let value = i32::try_from(value).expect("shapes fit 32 bits");
        self.structure(&[u64::from(value as u32)])
    }

    /// A number of 32 bits.
    #[must_use]
    #[inline(always)]
    pub fn float(self, value: f32) -> Arguments {
        self.structure(&[u64::from(value.to_bits())])
    }

    /// A number of 64 bits.
    #[must_use]
    #[inline(always)]
    pub fn double(self, value: f64) -> Arguments {
        self.structure(&[value.to_bits()])
    }

    /// A structure that is passed by value.
    #[must_use]
    #[inline(always)]
    pub fn structure(mut self, words: &[u64]) -> Arguments {
        self.starts[usize::from(self.count)] = self.len;
        // Few and of a known number where this is inlined: stores, and no call that copies.
        for (index, word) in words.iter().enumerate() {
            self.words[usize::from(self.len) + index] = *word;
        }
        self.count += 1;
        self.len += words.len() as u8;
        self
    }

    /// The words of each argument, from its first one on.
    pub fn each(&self) -> impl Iterator<Item = &[u64]> {
        let words = &self.words[..usize::from(self.len)];
        self.starts[..usize::from(self.count)].iter().map(|start| &words[usize::from(*start)..])
    }
}

/// Launches at the beginning and at the end of a list that it is first told by.
const MARKED: usize = 12;

/// Launches in their order, in memory that is used again for the next ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launches {
    heads: Vec<Head>,
    /// Words of the arguments of all of them.
    words: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    starts: [u8; Arguments::COUNT_MAX],
    len: u8,
    count: u8,
}

/// Names are compared by where they are: a name that lies in two places makes lists different, which costs time and nothing
/// else, and there are hundreds in a list. Where each argument begins is not compared: that goes with the kernel.
impl PartialEq for Head {
    #[inline(always)]
    fn eq(&self, other: &Head) -> bool {
        self.words() == other.words()
    }
}

impl Eq for Head {}

impl Head {
    #[inline(always)]
    fn words(&self) -> [u64; 4] {
        let [x, y, z] = self.grid;
        let lens = u32::from(self.len) << 8 | u32::from(self.count);
        [self.kernel.as_ptr() as u64, pair(x, y), pair(z, self.threads), pair(self.shared_bytes, lens)]
    }
}

/// One of [`Launches`]: `grid` blocks of `threads` threads with `shared_bytes` of dynamic memory each.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic memory of a block.
    pub shared_bytes: usize,
    head: &'a Head,
    /// Of all arguments.
    pub(super) words: &'a [u64],
}

impl<'a> Launch<'a> {
    fn new(head: &'a Head, words: &'a [u64]) -> Launch<'a> {
        let Head { kernel, grid, threads, shared_bytes, .. } = *head;
        Launch { kernel, grid, threads, shared_bytes: shared_bytes as usize, head, words }
    }

    /// The words of each argument, from its first one on.
    pub fn arguments(&self) -> impl Iterator<Item = &'a [u64]> + use<'a> {
        let (head, words) = (self.head, self.words);
        head.starts[..usize::from(head.count)].iter().map(move |start| &words[usize::from(*start)..])
    }

    fn to_arguments(self) -> Arguments {
        let Head { starts, len, count, .. } = *self.head;
        let mut words = [0; Arguments::WORDS_MAX];
        words[..self.words.len()].copy_from_slice(self.words);
        Arguments { words, starts, len, count }
    }
}

impl Launches {
    /// Adds one: see [`Device::launch`].
    pub fn push(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &Arguments,
    ) {
        let Arguments { words, starts, len, count } = arguments;
        let shared_bytes = u32::try_from(shared_bytes).expect("blocks have kilobytes");
        self.heads.push(Head { kernel, grid, threads, shared_bytes, starts: *starts, len: *len, count: *count });
        self.words.extend_from_slice(&words[..usize::from(*len)]);
    }

    /// As `push`, of a kernel whose one argument is a structure.
    pub fn push_structure(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        words: &[u64],
    ) {
        let shared_bytes = u32::try_from(shared_bytes).expect("blocks have kilobytes");
        let len = u8::try_from(words.len()).expect("structures are small");
        self.heads.push(Head { kernel, grid, threads, shared_bytes, starts: Default::default(), len, count: 1 });
        self.words.extend_from_slice(words);
    }

    /// A number that is the same for equal lists, and mostly another for others: of the first and the last launches. Steps of
    /// decoding differ there: rows are in each grid, and contexts in that of the first layer's attention.
    pub(super) fn mark(&self) -> u64 {
        // Multiplying by an odd number with its bits all over carries every bit upwards; turning brings them down again.
        let mix = |mark: u64, word: u64| (mark ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let heads = self.heads.len();
        let mut mark = mix(heads as u64, self.words.len() as u64);
        for head in self.heads.iter().take(MARKED).chain(&self.heads[heads.saturating_sub(MARKED)..]) {
            mark = head.words().into_iter().fold(mark, mix);
        }
        let first: usize = self.heads.iter().take(MARKED).map(|head| usize::from(head.len)).sum();
        self.words[..first].iter().copied().fold(mark, mix)
    }

    /// All of them, in their order.
    pub fn each(&self) -> impl Iterator<Item = Launch<'_>> {
        let mut rest = &self.words[..];
        self.heads.iter().map(move |head| {
            let (words, after) = rest.split_at(usize::from(head.len));
            rest = after;
            Launch::new(head, words)
        })
    }

    /// The one that was added last.
    pub(super) fn last(&self) -> Option<Launch<'_>> {
        let head = self.heads.last()?;
        let words = &self.words[self.words.len() - usize::from(head.len)..];
        Some(Launch::new(head, words))
    }

    /// Makes another kernel of the one that was added last, with one argument more, where it lies.
    pub(super) fn change_last(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        argument: u64,
    ) {
        if let Some(head) = self.heads.last_mut() {
            head.starts[usize::from(head.count)] = head.len;
            let (len, count) = (head.len + 1, head.count + 1);
            *head = Head { kernel, grid, threads, shared_bytes, len, count, starts: head.starts };
            self.words.push(argument);
        }
    }

    /// The words of the arguments of the one that was added last.
    pub(super) fn last_words(&mut self) -> &mut [u64] {
        let len = self.heads.last().map_or(0, |head| usize::from(head.len));
        let start = self.words.len() - len;
        &mut self.words[start..]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Forgets them; their memory stays.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.words.clear();
    }
}

/// Two numbers of 32 bits that are neighbours in a structure.
pub(super) fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// A device as the backend and its memory have it: memory that launches of a list name, which has not been run yet, is given
/// back after that.
pub(super) struct Lent<D: Device> {
    device: Arc<D>,
    /// True while there is such a list.
    listed: AtomicBool,
    /// Addresses and bytes of what was dropped meanwhile.
    dropped: Mutex<Vec<(u64, usize)>>,
}

impl<D: Device> Lent<D> {
    pub fn new(device: Arc<D>) -> Arc<Lent<D>> {
        Arc::new(Lent { device, listed: AtomicBool::new(false), dropped: Mutex::default() })
    }

    /// The device itself.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// There is a list that may name any memory.
    pub fn keep_memory(&self) {
        self.listed.store(true, Release);
    }

    /// The list has been run, or never will be.
    pub fn free_dropped(&self) {
        self.listed.store(false, Release);
        let dropped = std::mem::take(&mut *self.dropped.lock().expect("nothing panics under this lock"));
        dropped.into_iter().for_each(|(address, bytes)| self.device.free(address, bytes));
    }

    fn give_back(&self, address: u64, bytes: usize) {
        match self.listed.load(Acquire) {
            true => self.dropped.lock().expect("nothing panics under this lock").push((address, bytes)),
            false => self.device.free(address, bytes),
        }
    }
}

impl<D: Device> Deref for Lent<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.device
    }
}

/// Memory on a device; given back when dropped.
pub struct Memory<D: Device> {
    device: Arc<Lent<D>>,
    address: u64,
    bytes: usize,
}

impl<D: Device> Memory<D> {
    pub(super) fn new(device: &Arc<Lent<D>>, bytes: usize, purpose: Use) -> Result<Memory<D>, DeviceError> {
        // Nothing is a legal length of activations; devices want at least something.
        let bytes = bytes.max(16);
        Ok(Memory { device: device.clone(), address: device.alloc(bytes, purpose)?, bytes })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<D: Device> Drop for Memory<D> {
    fn drop(&mut self) {
        self.device.give_back(self.address, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_launch_is_found_and_becomes_another() {
        let mut list = Launches::default();
        assert!(list.last().is_none() && list.last_words().is_empty());
        let first = Arguments::new().pointer(7).structure(&[8, 9]);
        list.push("first", [1, 2, 3], 32, 0, &first);
        list.push("second", [4, 5, 6], 64, 16, &Arguments::new().int(10).pointer(11));
        let last = list.last().expect("there are two");
        assert_eq!((last.kernel, last.grid, last.threads, last.shared_bytes), ("second", [4, 5, 6], 64, 16));
        assert_eq!(last.words, [10, 11]);
        list.last_words()[0] = 13;
        list.change_last("third", [1, 1, 7], 128, 32, 12);
        list.push("fourth", [1, 1, 1], 32, 0, &Arguments::new().pointer(14));
        let mut wanted = Launches::default();
        wanted.push("first", [1, 2, 3], 32, 0, &first);
        wanted.push("third", [1, 1, 7], 128, 32, &Arguments::new().int(13).pointer(11).pointer(12));
        wanted.push("fourth", [1, 1, 1], 32, 0, &Arguments::new().pointer(14));
        let shown = |list: &Launches| -> Vec<_> {
            list.each().map(|l| (l.kernel, l.grid, l.arguments().map(|words| words[0]).collect::<Vec<_>>())).collect()
        };
        assert_eq!(shown(&list), shown(&wanted));
        assert_eq!(list.words, wanted.words);
    }
}
