//! Weights as they lie in the file.

use std::ops::Range;
use std::sync::Arc;

use crate::LoadError;
use crate::gguf::{FileBytes, Gguf, TensorInfo, TensorType};

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
    /// The matrix `name` of shape `[rows, cols]`, `None` if the file has none of this name.
    ///
    /// # Errors
    ///
    /// When it has another shape.
    pub(super) fn find(
        gguf: &Gguf<'_>,
        file: &FileBytes,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Matrix>, LoadError> {
        let Some(info) = gguf.tensor(name) else { return Ok(None) };
        check_shape(info, name, rows, cols)?;
        let (file, range) = (file.clone(), info.range.clone());
        Ok(Some(Matrix { file, range, tensor_type: info.tensor_type, rows, cols }))
    }

    /// All rows, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.file.as_slice()[self.range.clone()]
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.tensor_type.block_len() * self.tensor_type.block_bytes()
    }
}

/// A small weight, a norm or a bias, as `f32`. Cloning copies the handle.
#[derive(Clone, Debug)]
pub struct Vector(Arc<[f32]>);

impl Vector {
    /// The vector `name` with `len` elements, `None` if the file has none of this name.
    ///
    /// # Errors
    ///
    /// When it has another shape, or a type that such weights never have.
    pub(super) fn find(gguf: &Gguf<'_>, name: &str, len: usize) -> Result<Option<Vector>, LoadError> {
        let Some(info) = gguf.tensor(name) else { return Ok(None) };
        check_shape(info, name, 1, len)?;
        if info.tensor_type != TensorType::F32 {
            let what = format!("tensor type {} of tensor {name:?}: F32 is expected here", info.tensor_type.name());
            return Err(LoadError::unsupported(what));
        }
        let (chunks, _) = gguf.tensor_bytes(info).as_chunks::<4>();
        Ok(Some(Vector(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())))
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

fn check_shape(info: &TensorInfo, name: &str, rows: usize, cols: usize) -> Result<(), LoadError> {
    if (info.rows, info.cols) == (rows, cols) {
        return Ok(());
    }
    let why = format!("is {} by {}, and the metadata asks for {rows} by {cols}", info.rows, info.cols);
    Err(LoadError::corrupt(format!("tensor {name:?}"), why))
}
