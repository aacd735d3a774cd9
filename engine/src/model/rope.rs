//! Rotary position embeddings: by how much each pair of a head is turned from one position to the next.
//!
//! Sources: Su et al. 2021 (RoPE), Chen et al. 2023 (linear), Peng et al. 2023 (YaRN), Ding et al. 2024 (LongRoPE), and for
//! Llama 3's rule and all details Hugging Face `modeling_rope_utils.py`.

use std::f64::consts::PI;

use serde_json::Value as Json;

use super::settings::{Key, Settings};
use super::{Tensors, Vector};
use crate::LoadError;

const FREQ_BASE: Key = Key { gguf: "rope.freq_base", hf: "rope_theta" };
const FREQ_BASE_LOCAL: Key = Key { gguf: "rope.freq_base_swa", hf: "rope_local_base_freq" };
const SCALING_TYPE: Key = Key { gguf: "rope.scaling.type", hf: "" };
const SCALING_FACTOR: Key = Key { gguf: "rope.scaling.factor", hf: "" };
const SCALING_ORIGINAL: Key =
    Key { gguf: "rope.scaling.original_context_length", hf: "original_max_position_embeddings" };
const SCALING_MAGNITUDE: Key = Key { gguf: "rope.scaling.attn_factor", hf: "" };
const BETA_FAST: Key = Key { gguf: "rope.scaling.yarn_beta_fast", hf: "" };
const BETA_SLOW: Key = Key { gguf: "rope.scaling.yarn_beta_slow", hf: "" };

/// One way to rotate. A model has one for all its layers, or one for local and one for global attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians that one position turns each pair.
    pub frequencies: Vec<f64>,
    /// As `frequencies`, for sequences that may grow longer than `Stretch::from` says.
    pub stretched: Option<Vec<f64>>,
    /// Factor of cosine and sine.
    pub magnitude: f64,
}

/// Which part of a head is rotated, and how the context was stretched after the first training.
pub(super) struct RopeShape {
    /// Elements of a head that are rotated.
    pub rope_len: usize,
    pub context_length: usize,
    /// Base where the model names none.
    pub base_default: f64,
}

/// How a base's frequencies are changed.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    /// The file's own divisor of each frequency.
    Factors {
        factors: Vec<f64>,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original: f64,
        truncate: bool,
        magnitude: f64,
    },
    Long {
        short: Vec<f64>,
        long: Vec<f64>,
        magnitude: f64,
    },
}

/// The rotation of all layers, or of those with global attention.
///
/// # Errors
///
/// When the model asks for a scaling that is not known, or for one with impossible numbers.
pub(super) fn global(settings: &Settings<'_>, tensors: &Tensors, shape: &RopeShape) -> Result<Rope, LoadError> {
    let (base, scaling) = match settings.config() {
        None => (settings.positive(FREQ_BASE)?, of_metadata(settings, tensors, shape)?),
        Some(config) => of_config(settings, parameters(config, "full_attention"), shape)?,
    };
    build(base.unwrap_or(shape.base_default), scaling, shape)
}

/// The rotation of layers with local attention, where those have one of their own; they are never stretched.
///
/// # Errors
///
/// As for `global`.
pub(super) fn local(settings: &Settings<'_>, shape: &RopeShape) -> Result<Rope, LoadError> {
    let (base, scaling) = match settings.config() {
        Some(config) if config["rope_parameters"]["sliding_attention"].is_object() => {
            of_config(settings, parameters(config, "sliding_attention"), shape)?
        }
        _ => (settings.positive(FREQ_BASE_LOCAL)?, Scaling::None),
    };
    build(base.unwrap_or(shape.base_default), scaling, shape)
}

/// Tokens of a sequence from which on it is rotated by `Rope::stretched`.
pub(super) fn stretched_from(settings: &Settings<'_>) -> Result<Option<usize>, LoadError> {
    let within = settings.config().and_then(|c| c["rope_parameters"]["original_max_position_embeddings"].as_u64());
    if let Some(original) = within {
        return Ok(Some(original as usize));
    }
    settings.length(SCALING_ORIGINAL)
}

/// The object of `config.json` that describes the rotation: by layer type, for all, or in the older form.
fn parameters<'a>(config: &'a Json, layer_type: &str) -> &'a Json {
    let new = &config["rope_parameters"];
    match (new[layer_type].is_object(), new.is_object()) {
        (true, _) => &new[layer_type],
        (false, true) => new,
        _ => &config["rope_scaling"],
    }
}

fn of_config(
    settings: &Settings<'_>,
    parameters: &Json,
    shape: &RopeShape,
) -> Result<(Option<f64>, Scaling), LoadError> {
    let place = "the rope parameters in config.json";
    let number = |name: &str| parameters[name].as_f64();
    let needed = |name: &str| number(name).ok_or_else(|| LoadError::missing(format!("number {name:?} among {place}")));
    let base = match number("rope_theta") {
        Some(base) => Some(base),
        None => settings.positive(FREQ_BASE)?,
    };
    let context = shape.context_length as f64;
    let original = match number("original_max_position_embeddings") {
        Some(original) => Some(original),
        None => settings.positive(SCALING_ORIGINAL)?,
    };
    // "type" is the older name of "rope_type".
    let kind = parameters["rope_type"].as_str().or(parameters["type"].as_str()).unwrap_or("default");
    let scaling = match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: needed("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: original.unwrap_or(context),
        },
        "yarn" => {
            let original = original.unwrap_or(context);
            let factor = number("factor").unwrap_or(context / original);
            let magnitude = match (number("attention_factor"), number("mscale"), number("mscale_all_dim")) {
                (Some(magnitude), _, _) => magnitude,
                (None, Some(a), Some(b)) if a != 0.0 && b != 0.0 => {
                    yarn_magnitude(factor, a) / yarn_magnitude(factor, b)
                }
                _ => yarn_magnitude(factor, 1.0),
            };
            Scaling::Yarn {
                factor,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                original,
                truncate: parameters["truncate"].as_bool().unwrap_or(true),
                magnitude,
            }
        }
        // Phi-3's first files say "su".
        "longrope" | "su" => {
            let list = |name: &str| -> Result<Vec<f64>, LoadError> {
                let items = parameters[name].as_array().map(|a| a.iter().filter_map(Json::as_f64).collect::<Vec<_>>());
                items.ok_or_else(|| LoadError::missing(format!("list {name:?} among {place}")))
            };
            let original = original.unwrap_or(context);
            let factor = number("factor").unwrap_or(context / original);
            let magnitude = number("attention_factor").unwrap_or_else(|| long_magnitude(factor, original));
            Scaling::Long { short: list("short_factor")?, long: list("long_factor")?, magnitude }
        }
        other => return Err(LoadError::unsupported(format!("rope scaling {other:?} in config.json"))),
    };
    Ok((base, scaling))
}

fn of_metadata(settings: &Settings<'_>, tensors: &Tensors, shape: &RopeShape) -> Result<Scaling, LoadError> {
    let half = shape.rope_len / 2;
    let factors = |name: &str| -> Result<Option<Vec<f64>>, LoadError> {
        let found = Vector::find(tensors, name, half)?;
        Ok(found.map(|v| v.as_slice().iter().map(|x| f64::from(*x)).collect()))
    };
    // Llama 3's rule, and Phi-3's, lie in the file as divisors; what the scaling is called says nothing more then.
    if let Some(factors) = factors("rope_freqs.weight")? {
        return Ok(Scaling::Factors { factors });
    }
    let magnitude = settings.positive(SCALING_MAGNITUDE)?;
    let original = settings.positive(SCALING_ORIGINAL)?.unwrap_or(shape.context_length as f64);
    if let (Some(short), Some(long)) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?) {
        let factor = shape.context_length as f64 / original;
        return Ok(Scaling::Long {
            short,
            long,
            magnitude: magnitude.unwrap_or_else(|| long_magnitude(factor, original)),
        });
    }
    let factor = settings.positive(SCALING_FACTOR)?.unwrap_or(1.0);
    match settings.text(SCALING_TYPE)? {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor }),
        Some("yarn") => Ok(Scaling::Yarn {
            factor,
            beta_fast: settings.positive(BETA_FAST)?.unwrap_or(32.0),
            beta_slow: settings.positive(BETA_SLOW)?.unwrap_or(1.0),
            original,
            truncate: true,
            magnitude: magnitude.unwrap_or(1.0) * yarn_magnitude(factor, 1.0),
        }),
        Some(other) => {
            Err(LoadError::unsupported(format!("rope scaling {other:?} ({})", settings.place(SCALING_TYPE))))
        }
    }
}

/// By how much attention is sharpened when the context is stretched. Source: Peng et al. 2023, equation 22.
fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// Source: Ding et al. 2024, as Phi-3 has it.
fn long_magnitude(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}

fn build(base: f64, scaling: Scaling, shape: &RopeShape) -> Result<Rope, LoadError> {
    let half = shape.rope_len / 2;
    let plain: Vec<f64> = (0..half).map(|i| base.powf(-2.0 * i as f64 / shape.rope_len as f64)).collect();
    let divided = |factors: &[f64]| -> Result<Vec<f64>, LoadError> {
        if factors.len() != half {
            let why = format!("{} rope factors for {half} pairs", factors.len());
            return Err(LoadError::corrupt("the rope scaling", why));
        }
        Ok(plain.iter().zip(factors).map(|(f, factor)| f / factor).collect())
    };
    let (frequencies, stretched, magnitude) = match &scaling {
        Scaling::None => (plain, None, 1.0),
        Scaling::Linear { factor } => (divided(&vec![*factor; half])?, None, 1.0),
        Scaling::Factors { factors } => (divided(factors)?, None, 1.0),
        Scaling::Llama3 { factor, low, high, original } => {
            (plain.iter().map(|f| llama3(*f, *factor, *low, *high, *original)).collect(), None, 1.0)
        }
        Scaling::Yarn { factor, beta_fast, beta_slow, original, truncate, magnitude } => {
            let ramp = yarn_ramp(base, shape.rope_len, *beta_fast, *beta_slow, *original, *truncate);
            let mix = |(i, f): (usize, &f64)| f / factor * ramp(i) + f * (1.0 - ramp(i));
            (plain.iter().enumerate().map(mix).collect(), None, *magnitude)
        }
        Scaling::Long { short, long, magnitude } => (divided(short)?, Some(divided(long)?), *magnitude),
    };
    let all = frequencies.iter().chain(stretched.iter().flatten());
    if !magnitude.is_finite() || all.into_iter().any(|f| !f.is_finite()) {
        return Err(LoadError::corrupt("the rope scaling", format!("{scaling:?} with base {base} gives no numbers")));
    }
    Ok(Rope { frequencies, stretched, magnitude })
}

/// Long waves are stretched, short ones stay, and between the two it goes over smoothly.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wave_len = 2.0 * PI / frequency;
    if wave_len > original / low {
        return frequency / factor;
    }
    if wave_len < original / high {
        return frequency;
    }
    let smooth = (original / wave_len - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

/// How much of each pair is interpolated: nothing of those that turn often, all of those that turn less than once.
fn yarn_ramp(
    base: f64,
    rope_len: usize,
    beta_fast: f64,
    beta_slow: f64,
    original: f64,
    truncate: bool,
) -> impl Fn(usize) -> f64 {
    let pair_of = |turns: f64| rope_len as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
    let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(rope_len as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
}
