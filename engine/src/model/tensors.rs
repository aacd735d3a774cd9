//! Where a model's tensors lie: in one GGUF file, or in the safetensors files of a Hugging Face folder.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::fp8::{self, Unscaled};
use crate::LoadError;
use crate::gguf::{FileBytes, Gguf, TensorInfo, TensorType};

/// Parts that one model may have. The largest known one has under two hundred.
const SHARD_COUNT_MAX: usize = 4096;

/// Bytes of an index of parts that are still believed to be meant.
const INDEX_LEN_MAX: u64 = 64 << 20;

/// Who wrote the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    Gguf,
    HuggingFace,
}

/// A weight by its name in both formats, without the layer and the `.weight` or `.bias` at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub gguf: &'static str,
    pub hf: &'static str,
}

/// A tensor and the file that it lies in.
pub(crate) struct Tensor {
    pub file: FileBytes,
    /// The type by name where this engine cannot read it: an error only if the tensor is needed.
    pub info: Result<TensorInfo, String>,
}

/// The directory of all tensors.
pub(crate) struct Tensors {
    by_name: HashMap<String, Tensor>,
    naming: Naming,
    /// What stands before `model.` in a model of several kinds of input.
    prefix: String,
}

impl Tensors {
    pub fn of_gguf(gguf: &Gguf<'_>, file: &FileBytes) -> Tensors {
        let tensor = |info: &TensorInfo| Tensor { file: file.clone(), info: Ok(info.clone()) };
        let by_name = gguf.tensors().map(|(name, info)| (name.to_owned(), tensor(info))).collect();
        Tensors { by_name, naming: Naming::Gguf, prefix: String::new() }
    }

    /// Maps every part of a folder's model; `square` is what of an FP8 matrix has one scale, if the configuration says it.
    ///
    /// # Errors
    ///
    /// When a part is missing or damaged.
    pub fn of_folder(folder: &Path, square: Option<[usize; 2]>) -> Result<Tensors, LoadError> {
        let mut by_name = HashMap::new();
        let mut unscaled = Vec::new();
        for part in parts(folder)? {
            let path = folder.join(&part);
            let file = FileBytes::map(&path)?;
            let corrupt = |why: String| LoadError::corrupt(format!("{}", path.display()), why);
            let (header_len, header) =
                SafeTensors::read_metadata(file.as_slice()).map_err(|e| corrupt(e.to_string()))?;
            let data_start = header_len + 8;
            for (name, info) in header.tensors() {
                let (start, end) = info.data_offsets;
                let (cols, rows) = match info.shape.split_last() {
                    None => (1, 1),
                    Some((cols, others)) => (*cols, others.iter().product()),
                };
                let range = data_start + start..data_start + end;
                if info.dtype == Dtype::F8_E4M3 && cols * rows > 0 {
                    unscaled.push(Unscaled { name, file: file.clone(), range, rows, cols });
                    continue;
                }
                let info = match tensor_type(info.dtype) {
                    Some(_) if cols * rows == 0 => Err("that is empty".to_owned()),
                    Some(tensor_type) => Ok(TensorInfo { tensor_type, cols, rows, range }),
                    None => Err(format!("{:?}", info.dtype)),
                };
                if by_name.insert(name.clone(), Tensor { file: file.clone(), info }).is_some() {
                    return Err(corrupt(format!("tensor {name:?} is in another part, too")));
                }
            }
        }
        fp8::join(&mut by_name, unscaled, square)?;
        let prefix = ["", "language_model.", "model.language_model."].into_iter().find(|prefix| {
            let name = format!("{}embed_tokens.weight", model_prefix(prefix));
            by_name.contains_key(&name)
        });
        let prefix = prefix.unwrap_or_default().to_owned();
        Ok(Tensors { by_name, naming: Naming::HuggingFace, prefix })
    }

    /// A tensor by its whole name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// All tensors that this engine can read.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.by_name.values().filter_map(|t| t.info.as_ref().ok())
    }

    /// The whole name of a weight that all layers share.
    pub fn name(&self, name: Name) -> String {
        match self.naming {
            Naming::Gguf => format!("{}.weight", name.gguf),
            Naming::HuggingFace if name.hf == "lm_head" => {
                // The output stands beside the model and not within.
                format!("{}lm_head.weight", self.prefix.strip_prefix("model.").map_or(&*self.prefix, |_| ""))
            }
            Naming::HuggingFace => format!("{}{}.weight", model_prefix(&self.prefix), name.hf),
        }
    }

    /// The whole name of a layer's weight (`end` is "weight") or bias ("bias").
    pub fn layer_name(&self, layer: usize, name: Name, end: &str) -> String {
        match self.naming {
            Naming::Gguf => format!("blk.{layer}.{}.{end}", name.gguf),
            Naming::HuggingFace => format!("{}layers.{layer}.{}.{end}", model_prefix(&self.prefix), name.hf),
        }
    }
}

/// What stands before the embedding and the layers.
fn model_prefix(prefix: &str) -> String {
    if prefix.starts_with("model.") { prefix.to_owned() } else { format!("{prefix}model.") }
}

/// The files of a folder's model: one, or those that the index names.
pub(super) fn parts(folder: &Path) -> Result<Vec<String>, LoadError> {
    let (single, index) = ("model.safetensors", "model.safetensors.index.json");
    if folder.join(single).is_file() {
        return Ok(vec![single.to_owned()]);
    }
    if !folder.join(index).is_file() {
        return Err(LoadError::missing(format!("{single} and no {index} in {}", folder.display())));
    }
    let index = read_json(&folder.join(index), INDEX_LEN_MAX)?;
    let corrupt = |why: &str| LoadError::corrupt("model.safetensors.index.json", why);
    let map = index["weight_map"].as_object().ok_or_else(|| corrupt("has no object \"weight_map\""))?;
    let mut parts: Vec<String> = map.values().filter_map(Json::as_str).map(str::to_owned).collect();
    parts.sort_unstable();
    parts.dedup();
    // A name is a file of this folder and leads nowhere else.
    let plain = |part: &String| !part.contains(['/', '\\']) && part.ends_with(".safetensors");
    if parts.is_empty() || parts.len() > SHARD_COUNT_MAX || !parts.iter().all(plain) {
        return Err(corrupt("does not name safetensors files of its own folder"));
    }
    Ok(parts)
}

/// Reads a JSON file of at most `len_max` bytes.
///
/// # Errors
///
/// When it cannot be read, is larger, or is no JSON.
pub(super) fn read_json(path: &Path, len_max: u64) -> Result<Json, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if len > len_max {
        return Err(LoadError::corrupt(name, format!("has {len} bytes, and {len_max} are believed to be meant")));
    }
    serde_json::from_slice(&std::fs::read(path).map_err(failed)?).map_err(|e| LoadError::corrupt(name, e.to_string()))
}

fn tensor_type(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::Bf16),
        _ => None,
    }
}
