//! Qwen 2 and 2.5, with biases at queries, keys and values; Qwen 3, with norms there instead.
//!
//! Sources: Yang et al. 2024 (Qwen2), Yang et al. 2025 (Qwen3).

use super::super::settings::Key;
use super::{NetworkConfig, Shape, WINDOW};
use crate::LoadError;

const MAX_WINDOW_LAYERS: Key = Key { gguf: "", hf: "max_window_layers" };

pub(super) fn config(shape: &Shape<'_>) -> Result<NetworkConfig, LoadError> {
    shape.check_activation(&["silu"])?;
    // Qwen 3's heads are longer than the embedding cut evenly; 128 is what it means when it does not say so.
    let is_3 = shape.settings.architecture() == "qwen3";
    let mut config = shape.plain(is_3.then_some(128).filter(|_| !shape.settings.is_gguf()))?;
    config.head_norms = is_3;
    // A window is there only for those who ask for it twice.
    let asked = shape.settings.config().is_none_or(|c| c["use_sliding_window"].as_bool() == Some(true));
    let window = shape.settings.count(WINDOW)?.filter(|w| asked && *w > 0);
    if let Some(window) = window {
        let full = shape.settings.count(MAX_WINDOW_LAYERS)?.unwrap_or(0) as usize;
        let types = shape.layer_types(config.layer_count)?;
        config.make_local(window as usize, 0, |i| types.as_ref().map_or(i >= full, |t| t[i]));
    }
    Ok(config)
}
