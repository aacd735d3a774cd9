//! FP8 matrices of Hugging Face folders: bytes in one tensor, scales in another, put together into blocks as the
//! kernels read them.
//!
//! One scale may be for the whole matrix, for a row, or for a square of it; in a block each 128 elements have theirs. So
//! such a matrix lies in memory, 3 % larger, and not in the mapped file.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use serde_json::Value as Json;

use super::tensors::Tensor;
use crate::LoadError;
use crate::gguf::{FileBytes, TensorInfo, TensorType};

/// Elements that have a scale of their own, and their bytes with it.
const BLOCK_LEN: usize = 128;
const BLOCK_BYTES: usize = 4 + BLOCK_LEN;

/// What a matrix's scales are called beside `NAME.weight`. Elements are multiplied by either of them.
const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];

/// A tensor of bytes whose scales are elsewhere.
pub(super) struct Unscaled {
    pub name: String,
    pub file: FileBytes,
    pub range: Range<usize>,
    pub rows: usize,
    pub cols: usize,
}

/// True for a `quantization_config` that says what is read here: floats of eight bits.
pub(super) fn is_fp8(quantization: &Json) -> bool {
    match quantization["quant_method"].as_str() {
        Some("fp8" | "fbgemm_fp8") => true,
        Some("modelopt") => quantization["quant_algo"] == "FP8",
        Some("compressed-tensors") => quantization["format"] == "float-quantized",
        _ => false,
    }
}

/// Rows and columns of the squares that have a scale each, where `config.json` names them.
///
/// # Errors
///
/// When they are no two numbers above zero.
pub(super) fn square(config: &Json) -> Result<Option<[usize; 2]>, LoadError> {
    let value = &config["quantization_config"]["weight_block_size"];
    if value.is_null() {
        return Ok(None);
    }
    let side = |index: usize| value[index].as_u64().filter(|n| *n > 0).map(|n| n as usize);
    match (side(0), side(1)) {
        (Some(rows), Some(cols)) => Ok(Some([rows, cols])),
        _ => Err(LoadError::corrupt("\"weight_block_size\" in config.json", format!("is {value}"))),
    }
}

/// Puts every tensor's bytes and scales together; the tensors of scales go.
///
/// # Errors
///
/// When scales are missing, have a shape that says nothing, or an element or a scale is no number.
pub(super) fn join(
    by_name: &mut HashMap<String, Tensor>,
    unscaled: Vec<Unscaled>,
    square: Option<[usize; 2]>,
) -> Result<(), LoadError> {
    for tensor in unscaled {
        let (Unscaled { name, rows, cols, .. }, what) = (&tensor, format!("tensor {:?}", tensor.name));
        let base = name.strip_suffix("weight").unwrap_or(name);
        let found = SCALES.iter().find_map(|scale| by_name.remove(&format!("{base}{scale}")));
        let Some(found) = found else {
            return Err(LoadError::missing(format!("scale of {what}, which is F8_E4M3: {base}{}", SCALES[1])));
        };
        if !cols.is_multiple_of(BLOCK_LEN) {
            let why = format!("F8_E4M3 in {what} of rows of {cols} elements: whole blocks of {BLOCK_LEN} are read");
            return Err(LoadError::unsupported(why));
        }
        let scales = Scales::of(&found, *rows, *cols, square).map_err(|why| LoadError::corrupt(&*what, why))?;
        let bytes = blocks(&tensor, &scales).map_err(|why| LoadError::corrupt(&*what, why))?;
        let info = TensorInfo { tensor_type: TensorType::F8, cols: *cols, rows: *rows, range: 0..bytes.len() };
        by_name.insert(tensor.name, Tensor { file: FileBytes::from_vec(bytes), info: Ok(info) });
    }
    Ok(())
}

/// A scale for each rectangle of a matrix.
struct Scales {
    values: Vec<f32>,
    /// Scales side by side.
    width: usize,
    /// Rows and blocks of columns that share one.
    rows: usize,
    blocks: usize,
}

impl Scales {
    fn of(tensor: &Tensor, rows: usize, cols: usize, square: Option<[usize; 2]>) -> Result<Scales, String> {
        let info = tensor.info.as_ref().map_err(|kind| format!("its scales are {kind}"))?;
        let bytes = &tensor.file.as_slice()[info.range.clone()];
        let values: Vec<f32> = match info.tensor_type {
            TensorType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            TensorType::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
            }
            other => return Err(format!("its scales are {}: F32 or BF16 is expected", other.name())),
        };
        if let Some(scale) = values.iter().find(|x| !x.is_finite()) {
            return Err(format!("a scale is {scale}"));
        }
        let blocks = cols / BLOCK_LEN;
        // A list of as many scales as rows may have one dimension or two.
        let shape =
            if (info.rows, info.cols) == (1, rows) && rows != blocks { (rows, 1) } else { (info.rows, info.cols) };
        let sides = match square {
            _ if shape == (1, 1) => Some((rows, blocks)),
            Some([height, width]) => {
                let fits = shape == (rows.div_ceil(height), cols.div_ceil(width)) && width.is_multiple_of(BLOCK_LEN);
                fits.then_some((height, width / BLOCK_LEN))
            }
            None if shape == (rows, 1) => Some((1, blocks)),
            None if shape == (rows, blocks) => Some((1, 1)),
            None => None,
        };
        let (share_rows, share_blocks) = sides.ok_or_else(|| {
            format!(
                "{rows} by {cols} elements have {} by {} scales, and nothing says which is whose",
                info.rows, info.cols
            )
        })?;
        Ok(Scales { values, width: shape.1, rows: share_rows, blocks: share_blocks })
    }

    fn at(&self, row: usize, block: usize) -> f32 {
        self.values[row / self.rows * self.width + block / self.blocks]
    }
}

/// All rows as blocks: a scale, then its bytes. On all processors, for a model is gigabytes.
fn blocks(tensor: &Unscaled, scales: &Scales) -> Result<Vec<u8>, String> {
    let row_bytes = tensor.cols / BLOCK_LEN * BLOCK_BYTES;
    let from = &tensor.file.as_slice()[tensor.range.clone()];
    let mut out = vec![0; tensor.rows * row_bytes];
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let portion = tensor.rows.div_ceil(threads).max(1);
    let odd = std::thread::scope(|scope| {
        let parts = out.chunks_mut(portion * row_bytes).zip(from.chunks(portion * tensor.cols)).enumerate();
        let threads: Vec<_> = parts
            .map(|(part, (to, from))| {
                scope.spawn(move || {
                    let rows = to.chunks_exact_mut(row_bytes).zip(from.chunks_exact(tensor.cols)).enumerate();
                    rows.fold(None, |odd, (row, (to, from))| {
                        let row = part * portion + row;
                        odd.or((!fill_row(to, from, scales, row)).then_some(row))
                    })
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("copying does not panic")).next()
    });
    match odd {
        Some(row) => Err(format!("row {row} has an element that is no number")),
        None => Ok(out),
    }
}

/// False when an element is no number.
fn fill_row(to: &mut [u8], from: &[u8], scales: &Scales, row: usize) -> bool {
    let mut numbers = true;
    for (index, (to, from)) in to.chunks_exact_mut(BLOCK_BYTES).zip(from.chunks_exact(BLOCK_LEN)).enumerate() {
        let (scale, bytes) = to.split_at_mut(4);
        scale.copy_from_slice(&scales.at(row, index).to_le_bytes());
        bytes.copy_from_slice(from);
        // All ones but for the sign: the format has no infinities, and this.
        numbers &= !from.iter().any(|byte| byte & 0x7f == 0x7f);
    }
    numbers
}
