//! Gemma 2 and 3: four norms a layer, kept as distances from 1; scaled embeddings; local layers between global ones.
//!
//! Sources: Gemma team 2024 (Gemma 2: soft caps, every second layer local), 2025 (Gemma 3: norms of queries and keys
//! instead of caps, five local layers for a global one, a rotation of their own for each).

use super::super::settings::Key;
use super::{Activation, NetworkConfig, PATTERN, Shape, WINDOW};
use crate::LoadError;

const ATTENTION_CAP: Key = Key { gguf: "attn_logit_softcapping", hf: "attn_logit_softcapping" };
const LOGIT_CAP: Key = Key { gguf: "final_logit_softcapping", hf: "final_logit_softcapping" };
const QUERY_SCALAR: Key = Key { gguf: "", hf: "query_pre_attn_scalar" };

/// Length of a head where config.json does not say.
const HEAD_LEN: usize = 256;

/// Window of local layers where the model does not say.
const LOCAL_WINDOW: usize = 4096;

pub(super) fn config_2(shape: &Shape<'_>) -> Result<NetworkConfig, LoadError> {
    // 46 layers are the model of 27 billion weights, whose scale is that of heads of another length.
    let mut config = common(shape, 46)?;
    let cap = |key: Key, otherwise: f64| match shape.settings.has(key) {
        true => shape.settings.positive(key),
        false => Ok(Some(otherwise)),
    };
    let attention_cap = cap(ATTENTION_CAP, 50.0)?;
    config.layers.iter_mut().for_each(|l| l.attention.soft_cap = attention_cap.map(|c| c as f32));
    config.logit_cap = cap(LOGIT_CAP, 30.0)?.map(|c| c as f32);
    let types = shape.layer_types(config.layer_count)?;
    let window = shape.settings.length(WINDOW)?.unwrap_or(LOCAL_WINDOW);
    config.make_local(window, 0, |i| types.as_ref().map_or(i % 2 == 0, |t| t[i]));
    Ok(config)
}

pub(super) fn config_3(shape: &Shape<'_>) -> Result<NetworkConfig, LoadError> {
    // 62 layers are the model of 27 billion weights.
    let mut config = common(shape, 62)?;
    let attention_cap = shape.settings.positive(ATTENTION_CAP)?;
    config.layers.iter_mut().for_each(|l| l.attention.soft_cap = attention_cap.map(|c| c as f32));
    config.logit_cap = shape.settings.positive(LOGIT_CAP)?.map(|c| c as f32);
    config.head_norms = true;
    let local = shape.local_rope(&config, 10_000.0)?;
    config.ropes.push(local);
    let types = shape.layer_types(config.layer_count)?;
    let pattern = if types.is_some() { None } else { shape.settings.length(PATTERN)? }.unwrap_or(6);
    let window = shape.settings.length(WINDOW)?.unwrap_or(LOCAL_WINDOW);
    config.make_local(window, 1, |i| types.as_ref().map_or(!(i + 1).is_multiple_of(pattern), |t| t[i]));
    Ok(config)
}

/// What both have. In GGUF files the scale of attention must be known from the size: those with `largest` layers differ.
fn common(shape: &Shape<'_>, largest: usize) -> Result<NetworkConfig, LoadError> {
    shape.check_activation(&["gelu_pytorch_tanh"])?;
    let is_gguf = shape.settings.is_gguf();
    let mut config = shape.plain((!is_gguf).then_some(HEAD_LEN))?;
    // The converter to GGUF has added the 1 already.
    config.norm_offset = if is_gguf { 0.0 } else { 1.0 };
    config.post_norms = true;
    config.activation = Activation::Gelu;
    config.embedding_scale = Some((config.embedding_length as f32).sqrt());
    let scalar = match shape.settings.positive(QUERY_SCALAR)? {
        Some(scalar) => Some(scalar),
        None if is_gguf && config.layer_count == largest => {
            Some(config.embedding_length as f64 / config.head_count as f64)
        }
        None if is_gguf => None,
        None => Some(HEAD_LEN as f64),
    };
    if let Some(scalar) = scalar {
        config.layers.iter_mut().for_each(|l| l.attention.scale = (1.0 / scalar.sqrt()) as f32);
    }
    Ok(config)
}
