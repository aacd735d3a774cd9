//! Weights as they lie in the file.

use std::ops::Range;
use std::sync::Arc;

use orchestratord_cpu::Weight;

use super::tensors::{Tensor, Tensors};
use crate::LoadError;
use crate::gguf::{FileBytes, TensorInfo, TensorType};

/// A weight matrix: a place in the model file. Cloning copies the handle.
#[derive(Clone, Debug)]
pub struct Matrix {
    file: FileBytes,
    range: Range<usize>,
    /// How elements are stored.
    pub tensor_type: TensorType,
    /// Length of the output.
    pub rows: usize,
    /// Length of the input.
    pub cols: usize,
}

impl Matrix {
    /// The matrix `name` of shape `[rows, cols]`, `None` if the model has none of this name.
    ///
    /// # Errors
    ///
    /// When it has another shape, or a type that is not read.
    pub(super) fn find(tensors: &Tensors, name: &str, rows: usize, cols: usize) -> Result<Option<Matrix>, LoadError> {
        let Some(tensor) = tensors.find(name) else { return Ok(None) };
        let info = readable(tensor, name)?;
        check_shape(info, name, rows, cols)?;
        let (file, range) = (tensor.file.clone(), info.range.clone());
        Ok(Some(Matrix { file, range, tensor_type: info.tensor_type, rows, cols }))
    }

    /// Some of its rows, as a matrix of their own.
    pub(super) fn part(&self, rows: Range<usize>) -> Matrix {
        assert!(rows.end <= self.rows, "a matrix of {} rows has no {rows:?}", self.rows);
        let row_bytes = self.row_bytes();
        let range = self.range.start + rows.start * row_bytes..self.range.start + rows.end * row_bytes;
        Matrix { file: self.file.clone(), range, tensor_type: self.tensor_type, rows: rows.len(), cols: self.cols }
    }

    /// All rows, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.file.as_slice()[self.range.clone()]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.tensor_type.block_len() * self.tensor_type.block_bytes()
    }

    /// As the CPU's kernels take it.
    pub fn as_weight(&self) -> Weight<'_> {
        Weight { tensor_type: self.tensor_type, bytes: self.bytes(), rows: self.rows, cols: self.cols }
    }
}

/// A small weight, a norm or a bias, as `f32`. Cloning copies the handle.
#[derive(Clone, Debug)]
pub struct Vector(Arc<[f32]>);

impl Vector {
    /// The vector `name` with `len` elements, `None` if the model has none of this name.
    ///
    /// # Errors
    ///
    /// When it has another shape, or a type that such weights never have.
    pub(super) fn find(tensors: &Tensors, name: &str, len: usize) -> Result<Option<Vector>, LoadError> {
        let Some(tensor) = tensors.find(name) else { return Ok(None) };
        let info = readable(tensor, name)?;
        check_shape(info, name, 1, len)?;
        let bytes = &tensor.file.as_slice()[info.range.clone()];
        let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        let elements = match info.tensor_type {
            TensorType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            TensorType::Bf16 => halves().map(|h| f32::from_bits(u32::from(h) << 16)).collect(),
            TensorType::F16 => halves().map(f16_to_f32).collect(),
            other => {
                let what =
                    format!("tensor type {} of tensor {name:?}: F32, F16 or BF16 is expected here", other.name());
                return Err(LoadError::unsupported(what));
            }
        };
        Ok(Some(Vector(elements)))
    }

    /// The same with `offset` added to every element.
    pub(super) fn plus(&self, offset: f32) -> Vector {
        Vector(self.0.iter().map(|x| x + offset).collect())
    }

    /// Some of its elements, as a vector of their own.
    pub(super) fn part(&self, range: Range<usize>) -> Vector {
        Vector(self.0[range].into())
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none; the reader refuses such tensors.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

/// Half precision, subnormal numbers included.
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let (exponent, fraction) = (u32::from(half >> 10 & 31), u32::from(half & 1023));
    let magnitude = match exponent {
        0 => fraction as f32 * f32::from_bits(0x3380_0000),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

fn readable<'t>(tensor: &'t Tensor, name: &str) -> Result<&'t TensorInfo, LoadError> {
    let unsupported = |kind: &String| LoadError::unsupported(format!("tensor type {kind} of tensor {name:?}"));
    tensor.info.as_ref().map_err(unsupported)
}

fn check_shape(info: &TensorInfo, name: &str, rows: usize, cols: usize) -> Result<(), LoadError> {
    if (info.rows, info.cols) == (rows, cols) {
        return Ok(());
    }
    let why = format!("is {} by {}, and the metadata asks for {rows} by {cols}", info.rows, info.cols);
    Err(LoadError::corrupt(format!("tensor {name:?}"), why))
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn half_precision_is_widened_exactly() {
        let cases =
            [(0, 0.0), (1, 5.960_464_5e-8), (0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x3555, 0.333_251_95)];
        for (half, wanted) in cases {
            assert_eq!(f16_to_f32(half), wanted);
        }
        assert!(f16_to_f32(0x7e00).is_nan() && f16_to_f32(0xfc00) == f32::NEG_INFINITY);
    }
}
