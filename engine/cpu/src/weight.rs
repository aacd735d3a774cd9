//! The doors to the kernels: a tensor type is looked up, then its kernel is called.

use crate::format::{Bf16, Floats, Integers, Rows, UNIT_LEN, decode_floats, decode_integers, with_format};
use crate::matmul::{Activations, matmul_floats, matmul_integers, matmul_pairs};
use crate::pool::WorkerPool;
use crate::simd::{Isa, Simd, instantiate};
use crate::tensor_type::TensorType;

/// A matrix as a file stores it: `rows` rows of `cols` elements, each a whole number of the type's blocks.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// How the elements are stored.
    pub tensor_type: TensorType,
    /// Its rows, one after the other.
    pub bytes: &'a [u8],
    /// Output elements of a matmul.
    pub rows: usize,
    /// Input elements of a matmul.
    pub cols: usize,
}

impl<'a> Weight<'a> {
    fn rows_as<F>(&self, format: F) -> Rows<'a, F> {
        let row_bytes = self.cols / self.tensor_type.block_len() * self.tensor_type.block_bytes();
        Rows { format, bytes: self.bytes, row_bytes, cols: self.cols }
    }
}

/// `out[row, o] = sum over i of x[row, i] * weight[o, i]` for `rows` rows. `scratch` takes over `x`.
pub fn matmul(
    pool: &WorkerPool,
    isa: Isa,
    scratch: &mut Activations,
    out: &mut [f32],
    x: &[f32],
    rows: usize,
    weight: &Weight<'_>,
) {
    if weight.tensor_type == TensorType::Bf16 && isa.multiplies_pairs() {
        return matmul_pairs(pool, isa, out, weight.rows, scratch, x, rows, weight.rows_as(Bf16));
    }
    with_format!(
        weight.tensor_type,
        format => floats matmul_floats(pool, isa, out, weight.rows, scratch, x, rows, weight.rows_as(format)),
        integers {
            matmul_integers(pool, isa, out, weight.rows, scratch, x, rows, weight.rows_as(format));
        }
    );
}

/// Decodes the bytes of one row into as many elements as `out` has.
pub fn decode_row(isa: Isa, tensor_type: TensorType, bytes: &[u8], out: &mut [f32]) {
    with_format!(
        tensor_type,
        format => floats decode_floats_on(isa, format, bytes, out),
        integers decode_integers_on(isa, format, bytes, out)
    );
}

instantiate!(fn decode_floats_on = decode_floats_row<F: Floats>(format: F, row: &[u8], out: &mut [f32]));
instantiate!(fn decode_integers_on = decode_integers<F: Integers>(format: F, row: &[u8], out: &mut [f32]));

/// Decodes a row of any length into exactly as many elements.
#[inline(always)]
fn decode_floats_row<S: Simd, F: Floats>(simd: S, format: F, row: &[u8], out: &mut [f32]) {
    let whole = out.len() / UNIT_LEN * UNIT_LEN;
    let (out, tail) = out.split_at_mut(whole);
    let bytes = whole / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_BYTES;
    decode_floats(simd, format, &row[..bytes], out);
    if !tail.is_empty() {
        let mut unit = [0.0; UNIT_LEN];
        decode_floats(simd, format, &row[bytes..], &mut unit);
        tail.copy_from_slice(&unit[..tail.len()]);
    }
}
