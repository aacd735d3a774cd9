//! Records of activations beside the rows: a norm or a gate whose rows the next product takes makes their records, too, so that
//! they are not read again and there is one launch fewer.
//!
//! It is decided when a product asks for records: if what the list ends with is the launch that wrote exactly these rows, that
//! launch becomes its variant with records. Nothing lies between the two, so nothing that is on the list can have read what
//! the records replace, and the rows themselves are written as before, for whoever else reads them.

use super::device::Launch;
use super::repack::Input;
use super::{CudaBackend, Device};

/// Elements of the longest row of which a norm makes records: it lies in 64 kB of shared memory, which every device has.
pub(super) const ROW_LEN_MAX: usize = 16 * 1024;

/// A kernel that writes rows.
struct Writer {
    kernel: &'static str,
    /// Its variants with records of words and of halves.
    with_records: [&'static str; 2],
    /// Which of its arguments is the address of the rows.
    rows_at: usize,
    /// Which of them is the length: a norm's is a row's, a gate's that of all rows.
    len_at: usize,
    is_norm: bool,
}

const WRITERS: [Writer; 4] = [
    Writer {
        kernel: "rms_norm",
        with_records: ["rms_norm_words", "rms_norm_halves"],
        rows_at: 0,
        len_at: 3,
        is_norm: true,
    },
    Writer {
        kernel: "add_rms_norm",
        with_records: ["add_rms_norm_words", "add_rms_norm_halves"],
        rows_at: 1,
        len_at: 3,
        is_norm: true,
    },
    Writer {
        kernel: "silu_mul",
        with_records: ["silu_mul_words", "silu_mul_halves"],
        rows_at: 0,
        len_at: 2,
        is_norm: false,
    },
    Writer {
        kernel: "gelu_mul",
        with_records: ["gelu_mul_words", "gelu_mul_halves"],
        rows_at: 0,
        len_at: 2,
        is_norm: false,
    },
];

impl Writer {
    /// True when `launch` is this kernel and writes `rows` rows of `cols` at `x`, and nothing else there.
    fn wrote(&self, launch: &Launch<'_>, x: u64, rows: usize, cols: usize) -> bool {
        // Each of its arguments is a word.
        launch.kernel == self.kernel
            && launch.words[self.rows_at] == x
            && match self.is_norm {
                true => {
                    launch.grid[0] as usize == rows && launch.words[self.len_at] == cols as u64 && cols <= ROW_LEN_MAX
                }
                false => launch.words[self.len_at] == (rows * cols) as u64,
            }
    }
}

impl<D: Device> CudaBackend<D> {
    /// Has the launch at the list's end make records at `records` of the `rows` rows at `x`; false, and nothing changed, if it
    /// is not what wrote them.
    pub(super) fn make_records_beside(&mut self, records: u64, x: u64, rows: usize, cols: usize, input: Input) -> bool {
        let Some(last) = self.list.last() else { return false };
        let Some(writer) = WRITERS.iter().find(|writer| writer.wrote(&last, x, rows, cols)) else { return false };
        let kinds = Input::RECORDS.iter().zip(writer.with_records);
        let Some(((_, _, [stage_len, ..]), kernel)) = kinds.into_iter().find(|((of, ..), _)| *of == input) else {
            return false;
        };
        let (grid, threads) = (last.grid, last.threads);
        if writer.is_norm {
            self.list.change_last(kernel, grid, threads, (cols * 4) as u32, records);
        } else {
            let blocks = cols.div_ceil(*stage_len).div_ceil(4) as u32;
            self.list.last_words()[writer.len_at] = cols as u64;
            self.list.change_last(kernel, [blocks, rows as u32, 1], 128, 0, records);
        }
        true
    }
}
