//! Phi-3 and 4: Llama with queries, keys and values in one matrix, gate and up in another, and LongRoPE.
//!
//! That matrices are one is seen from the tensors; see `decoder.rs`.
//!
//! Source: Abdin et al. 2024 (Phi-3).

use super::{NetworkConfig, Shape, WINDOW};
use crate::LoadError;

pub(super) fn config(shape: &Shape<'_>) -> Result<NetworkConfig, LoadError> {
    shape.check_activation(&["silu"])?;
    let mut config = shape.plain(None)?;
    if let Some(window) = shape.settings.count(WINDOW)?.filter(|w| *w > 0) {
        config.make_local(window as usize, 0, |_| true);
    }
    Ok(config)
}
