//! What the CUDA backend needs of a device: memory, copies, launches, all in one order.
//!
//! The driver has it; so has the emulation that the tests build from the same kernels.

use std::sync::Arc;

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

/// A device and its one stream: everything happens in the order of the calls, `download` waits for all of it.
pub trait Device: Send + Sync {
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

    /// Names its arithmetic.
    fn arithmetic(&self) -> String;

    /// Processors that blocks are spread over: tiles are as large as leaves a block for each. Bits do not depend on it, so that
    /// a large device's number will do for all.
    fn processors(&self) -> usize {
        132
    }

    /// True for a device that only counts what is asked of it: nobody need read weights for it.
    fn only_counts(&self) -> bool {
        false
    }
}

/// Arguments of a launch, each in words of its own. A kernel takes under twelve, in under thirty-two words.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    words: [u64; 32],
    starts: [usize; Arguments::COUNT_MAX],
    len: usize,
    count: usize,
}

impl Arguments {
    /// Most that a kernel takes.
    pub(super) const COUNT_MAX: usize = 12;

    /// None yet.
    pub fn new() -> Arguments {
        Arguments::default()
    }

    /// An address.
    #[must_use]
    pub fn pointer(self, address: u64) -> Arguments {
        self.structure(&[address])
    }

    /// A whole number of 32 bits.
    ///
    /// # Panics
    ///
    /// When it has more.
    #[must_use]
    pub fn int(self, value: usize) -> Arguments {
        let value = i32::try_from(value).expect("shapes fit 32 bits");
        self.structure(&[u64::from(value as u32)])
    }

    /// A number of 32 bits.
    #[must_use]
    pub fn float(self, value: f32) -> Arguments {
        self.structure(&[u64::from(value.to_bits())])
    }

    /// A number of 64 bits.
    #[must_use]
    pub fn double(self, value: f64) -> Arguments {
        self.structure(&[value.to_bits()])
    }

    /// A structure that is passed by value.
    #[must_use]
    pub fn structure(mut self, words: &[u64]) -> Arguments {
        self.starts[self.count] = self.len;
        self.words[self.len..self.len + words.len()].copy_from_slice(words);
        self.count += 1;
        self.len += words.len();
        self
    }

    /// The words of each argument, from its first one on.
    pub fn each(&self) -> impl Iterator<Item = &[u64]> {
        self.starts[..self.count].iter().map(|start| &self.words[*start..self.len])
    }
}

/// Two numbers of 32 bits that are neighbours in a structure.
pub(super) fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// Memory on a device; given back when dropped.
pub struct Memory<D: Device> {
    device: Arc<D>,
    address: u64,
    bytes: usize,
}

impl<D: Device> Memory<D> {
    pub(super) fn new(device: &Arc<D>, bytes: usize, purpose: Use) -> Result<Memory<D>, DeviceError> {
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
        self.device.free(self.address, self.bytes);
    }
}
