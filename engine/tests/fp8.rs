//! Hugging Face folders with FP8 matrices, in every way that scales are stored, against the same folder in single
//! precision; and what is wrong with one, said in a line.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::engine;
use orchestratord_engine::Model;
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, encode};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 128;
const FEED_FORWARD: usize = 384;
const HEADS: [usize; 2] = [4, 2];
const VOCAB: usize = 272;

/// Rows and columns that share a scale, and the tensor's shape.
#[derive(Clone, Copy)]
enum Scaling {
    Tensor,
    Row,
    RowInOneDimension,
    Square(usize),
}

/// A tensor of a safetensors file.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A folder that goes when the test is over.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(name: &str, tensors: &[Tensor], quantization: Value) -> Folder {
        let folder = std::env::temp_dir().join(format!("orchestratord-fp8-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let references = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/llama3");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(references.join(file), folder.join(file)).expect("copied");
        }
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
            "intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS[0], "num_key_value_heads": HEADS[1],
            "num_hidden_layers": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": true, "vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1,
            "quantization_config": quantization,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
        let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
        for tensor in tensors {
            let start = data.len();
            data.extend(&tensor.bytes);
            let place = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
            header.insert(tensor.name.clone(), place);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(data);
        std::fs::write(folder.join("model.safetensors"), file).expect("written");
        Folder(folder)
    }
}

/// An element by the book.
fn value(byte: u8) -> f64 {
    let sign = if byte >> 7 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    sign * if exponent == 0 { fraction * 2f64.powi(-9) } else { (8.0 + fraction) * 2f64.powi(exponent - 10) }
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// All tensors of the model: matrices as FP8 with scales, and once more as what these stand for.
fn tensors(scaling: Scaling, scale_name: &str) -> [Vec<Tensor>; 2] {
    let mut dice = Dice::new(8);
    let (mut eight, mut single) = (Vec::new(), Vec::new());
    let key_len = HIDDEN / HEADS[0] * HEADS[1];
    let mut matrices = Vec::new();
    for layer in 0..2 {
        for (name, rows, cols) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", key_len, HIDDEN),
            ("self_attn.v_proj", key_len, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.up_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ] {
            matrices.push((format!("model.layers.{layer}.{name}"), rows, cols));
        }
    }
    for (name, rows, cols) in matrices {
        let (height, width, shape) = match scaling {
            Scaling::Tensor => (rows, cols, vec![]),
            Scaling::Row => (1, cols, vec![rows, 1]),
            Scaling::RowInOneDimension => (1, cols, vec![rows]),
            Scaling::Square(side) => (side, side, vec![rows.div_ceil(side), cols.div_ceil(side)]),
        };
        let across = cols.div_ceil(width);
        let scales: Vec<f32> = (0..rows.div_ceil(height) * across).map(|_| 4e-4 * (1.0 + 0.5 * dice.unit())).collect();
        // Any byte but those that are no numbers.
        let bytes: Vec<u8> = (0..rows * cols).map(|_| dice.below(2) as u8 * 128 + dice.below(127) as u8).collect();
        let plain = (0..rows * cols).map(|i| {
            let scale = scales[i / cols / height * across + i % cols / width];
            (value(bytes[i]) * f64::from(scale)) as f32
        });
        let name = format!("{name}.weight");
        single.push(Tensor { name: name.clone(), dtype: "F32", shape: vec![rows, cols], bytes: f32s(plain) });
        let scale = name.replace(".weight", scale_name);
        eight.push(Tensor { name, dtype: "F8_E4M3", shape: vec![rows, cols], bytes });
        eight.push(Tensor { name: scale, dtype: "F32", shape, bytes: f32s(scales) });
    }
    let embedding: Vec<f32> = (0..VOCAB * HIDDEN).map(|_| dice.unit() * 0.2).collect();
    let mut vectors = vec!["model.norm".to_owned()];
    for layer in 0..2 {
        vectors.extend(["input", "post_attention"].map(|n| format!("model.layers.{layer}.{n}_layernorm")));
    }
    for tensors in [&mut eight, &mut single] {
        let bytes = encode(TensorType::Bf16, &embedding);
        let name = "model.embed_tokens.weight".to_owned();
        tensors.push(Tensor { name, dtype: "BF16", shape: vec![VOCAB, HIDDEN], bytes });
        for name in &vectors {
            let bytes = f32s(std::iter::repeat_n(1.0, HIDDEN));
            tensors.push(Tensor { name: format!("{name}.weight"), dtype: "F32", shape: vec![HIDDEN], bytes });
        }
    }
    [eight, single]
}

fn logits(folder: &Folder) -> Vec<f32> {
    let model = Arc::new(Model::open(&folder.0).expect("a sound folder"));
    let prompt: Vec<u32> = (0..21).map(|i| 5 + i * 11).collect();
    engine(&model, |_| ()).forward_logits(&prompt).expect("the CPU does not fail")
}

#[test]
fn fp8_is_what_its_bytes_and_scales_stand_for() {
    let fp8 = || json!({"quant_method": "fp8", "activation_scheme": "dynamic"});
    let square = || json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let compressed = || json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
    for (name, scaling, scale_name, quantization) in [
        ("tensor", Scaling::Tensor, ".weight_scale", fp8()),
        ("row", Scaling::Row, ".weight_scale", compressed()),
        ("list", Scaling::RowInOneDimension, ".weight_scale", json!({"quant_method": "fbgemm_fp8"})),
        ("square", Scaling::Square(128), ".weight_scale_inv", square()),
    ] {
        let [eight, single] = tensors(scaling, scale_name);
        let folder = Folder::new(name, &eight, quantization);
        let got = logits(&folder);
        let wanted = logits(&Folder::new(&format!("{name}-f32"), &single, Value::Null));
        let largest = wanted.iter().fold(0f32, |a, x| a.max(x.abs()));
        assert!(largest > 0.1, "{name}: logits say something: {largest}");
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((got - wanted).abs() <= 1e-5 * largest, "{name}: {got} and not {wanted}");
        }
        let info = Model::open(&folder.0).expect("a sound folder").info().clone();
        assert_eq!(info.quantization, "F8_E4M3", "{name}");
        assert_eq!(
            info.parameter_count as usize,
            single.iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>()
        );
    }
}

#[test]
fn what_is_wrong_with_an_fp8_folder_is_said_in_a_line() {
    let refused = |name: &str, quantization: Value, change: &dyn Fn(&mut Vec<Tensor>)| {
        let [mut eight, _] = tensors(Scaling::Row, ".weight_scale");
        change(&mut eight);
        let folder = Folder::new(name, &eight, quantization);
        Model::open(&folder.0).err().unwrap_or_else(|| panic!("{name} is taken")).to_string()
    };
    let fp8 = || json!({"quant_method": "fp8"});
    let said = refused("no-scale", fp8(), &|t| t.retain(|t| !t.name.ends_with("0.mlp.up_proj.weight_scale")));
    assert!(said.contains("model.layers.0.mlp.up_proj.weight_scale"), "{said}");
    let said = refused("no-number", fp8(), &|t| t[2].bytes[300] = 0xff);
    assert!(said.contains("k_proj") && said.contains("row 2 has an element that is no number"), "{said}");
    let said = refused("no-finite-scale", fp8(), &|t| t[1].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()));
    assert!(said.contains("a scale is inf"), "{said}");
    let said = refused("strange-scales", fp8(), &|t| {
        (t[1].shape, t[1].bytes) = (vec![3], f32s([1.0; 3]));
    });
    assert!(said.contains("q_proj") && said.contains("have 1 by 3 scales"), "{said}");
    let squares = json!({"quant_method": "fp8", "weight_block_size": [128, 96]});
    let said = refused("narrow-squares", squares, &|_| ());
    assert!(said.contains("nothing says which is whose"), "{said}");
    let said = refused("no-squares", json!({"quant_method": "fp8", "weight_block_size": "all"}), &|_| ());
    assert!(said.contains("weight_block_size"), "{said}");
    let said = refused("other-method", json!({"quant_method": "awq"}), &|_| ());
    assert!(said.contains("\"awq\"") && said.contains("GGUF"), "{said}");
    let said = refused("narrow-rows", fp8(), &|t| (t[0].shape, t[0].bytes) = (vec![HIDDEN, 96], vec![0; HIDDEN * 96]));
    assert!(said.contains("rows of 96 elements"), "{said}");
}
