//! Llama 2 and 3, and Mistral, which is the same with a window where its file sets one.
//!
//! Sources: Touvron et al. 2023 (LLaMA), Grattafiori et al. 2024 (Llama 3), Jiang et al. 2023 (Mistral).

use super::{NetworkConfig, Shape, WINDOW};
use crate::LoadError;
use crate::backend::RopePairs;

/// Mistral's window where config.json does not speak of one at all; null says that there is none.
const MISTRAL_WINDOW: usize = 4096;

pub(super) fn config(shape: &Shape<'_>) -> Result<NetworkConfig, LoadError> {
    shape.check_activation(&["silu"])?;
    let mut config = shape.plain(None)?;
    if shape.settings.is_gguf() {
        // The converter reorders the rows of queries and keys so that pairs are neighbours.
        config.rope_pairs = RopePairs::Neighbours;
    }
    let window = match shape.settings.count(WINDOW)? {
        None if config.architecture == "mistral" && !shape.settings.has(WINDOW) => Some(MISTRAL_WINDOW),
        window => window.map(|w| w as usize).filter(|w| *w > 0),
    };
    if let Some(window) = window {
        config.make_local(window, 0, |_| true);
    }
    Ok(config)
}
