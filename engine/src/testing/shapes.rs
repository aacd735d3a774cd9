//! Random models of the shapes that published ones have, without a file: for measuring.
//!
//! All matrices lie in one pool of random elements, each a little behind the one before: in memory a model takes what its
//! largest matrix does and is made in a second, and a device still gets every byte of every matrix. The speed of a product
//! does not depend on whose elements are whose.

use super::{ALIGNMENT, Dice, Place, TinyModel, encode};
use crate::gguf::TensorType;

/// Names of the shapes.
pub const SHAPES: [&str; 4] = ["tiny", "qwen2.5-0.5b", "llama-3.2-1b", "llama-3.1-8b"];

/// Elements that one thread makes at a time.
const PIECE_LEN: usize = 1 << 20;

impl TinyModel {
    /// A model of a published shape, the smallest of them for emulated devices: its sizes, its vocabulary's size, the base of
    /// its rotation; its context is cut to 16384 tokens. None if there is no such shape.
    ///
    /// Source: `config.json` of the models' repositories at Hugging Face.
    pub fn of_shape(name: &str, tensor_type: TensorType) -> Option<TinyModel> {
        let base = TinyModel {
            name: name.to_owned(),
            tensor_type,
            context_length: 16384,
            vocab_len: 128_256,
            freq_base: 500_000.0,
            rope_factors: true,
            chat_template: None,
            ..TinyModel::default()
        };
        Some(match name {
            "tiny" => TinyModel {
                vocab_len: 320,
                layer_count: 2,
                embedding_length: 64,
                feed_forward_length: 96,
                head_count: 4,
                head_count_kv: 2,
                head_len: 16,
                untied: true,
                ..base
            },
            "qwen2.5-0.5b" => TinyModel {
                architecture: "qwen2",
                vocab_len: 151_936,
                layer_count: 24,
                embedding_length: 896,
                feed_forward_length: 4864,
                head_count: 14,
                head_count_kv: 2,
                head_len: 64,
                freq_base: 1_000_000.0,
                rope_factors: false,
                biases: true,
                ..base
            },
            "llama-3.2-1b" => TinyModel {
                layer_count: 16,
                embedding_length: 2048,
                feed_forward_length: 8192,
                head_count: 32,
                head_count_kv: 8,
                head_len: 64,
                ..base
            },
            "llama-3.1-8b" => TinyModel {
                layer_count: 32,
                embedding_length: 4096,
                feed_forward_length: 14336,
                head_count: 32,
                head_count_kv: 8,
                head_len: 128,
                untied: true,
                ..base
            },
            _ => return None,
        })
    }

    /// The file, its matrices in one pool for each type. Elements are about as large as activations want them: those of
    /// products stay finite, and logits differ.
    pub fn to_overlapping_bytes(&self) -> Vec<u8> {
        let mut dice = Dice::new(self.seed);
        let (matrices, vectors) = (self.matrices(), self.vectors(&mut dice));
        let bytes_of = |rows, cols: usize| {
            let tensor_type = self.type_of(cols);
            rows * (cols / tensor_type.block_len()) * tensor_type.block_bytes()
        };
        let mut offset = 0;
        let mut places = Vec::new();
        for vector in &vectors {
            places.push((&vector.name, vector.dimensions.clone(), vector.tensor_type, offset));
            offset = (offset + vector.bytes.len()).next_multiple_of(ALIGNMENT);
        }
        let mut pools: Vec<(TensorType, usize, usize)> = Vec::new();
        for tensor_type in [self.tensor_type, TensorType::F16] {
            if pools.iter().any(|(t, ..)| *t == tensor_type) {
                continue;
            }
            let start = offset;
            let mut end = start;
            let of_type = matrices.iter().filter(|(_, _, cols)| self.type_of(*cols) == tensor_type);
            for (index, (name, rows, cols)) in of_type.enumerate() {
                // Whole blocks that begin where a tensor may.
                let place = start + index * tensor_type.block_bytes() * ALIGNMENT;
                places.push((name, vec![*cols, *rows], tensor_type, place));
                end = end.max(place + bytes_of(*rows, *cols));
            }
            pools.push((tensor_type, start, end));
            offset = end.next_multiple_of(ALIGNMENT);
        }
        let entries = places.iter().map(|(name, dimensions, tensor_type, start)| Place {
            name,
            dimensions,
            tensor_type: *tensor_type,
            start: *start,
        });
        let mut out = self.header(&entries.collect::<Vec<_>>());
        let data = out.len().next_multiple_of(ALIGNMENT);
        out.resize(data + offset, 0);
        let mut at = data;
        for vector in &vectors {
            out[at..at + vector.bytes.len()].copy_from_slice(&vector.bytes);
            at = (at + vector.bytes.len()).next_multiple_of(ALIGNMENT);
        }
        for (tensor_type, start, end) in pools {
            let scale = 1.7 / (self.embedding_length as f32).sqrt();
            fill(&mut out[data + start..data + end], tensor_type, scale, self.seed);
        }
        out
    }
}

/// Fills whole blocks with random elements from `-scale` to `scale`, on all processors.
fn fill(pool: &mut [u8], tensor_type: TensorType, scale: f32, seed: u64) {
    let piece_bytes = PIECE_LEN / tensor_type.block_len() * tensor_type.block_bytes();
    let pieces = std::sync::Mutex::new(pool.chunks_mut(piece_bytes).enumerate());
    let next = || pieces.lock().expect("nothing panics under this lock").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((index, piece)) = next() {
                    let mut dice = Dice::new(seed ^ (index as u64 + 1) << 32);
                    let len = piece.len() / tensor_type.block_bytes() * tensor_type.block_len();
                    let values: Vec<f32> = (0..len).map(|_| dice.unit() * scale).collect();
                    piece.copy_from_slice(&encode(tensor_type, &values));
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, EngineOptions, Model};
    use std::sync::Arc;

    #[test]
    fn logits_of_every_type_are_finite_and_differ_from_token_to_token() {
        for tensor_type in TensorType::all() {
            let tiny = TinyModel::of_shape("tiny", tensor_type).expect("it is one");
            // Rows of whole blocks, whatever the type; and one matrix whose rows are none of some types.
            let tiny = TinyModel { embedding_length: 256, ..tiny };
            let model = Arc::new(Model::from_vec(tiny.to_overlapping_bytes()).expect("a sound model"));
            let mut engine = Engine::new(model, EngineOptions::default()).expect("legal options");
            let logits = engine.forward_logits(&[5, 300, 7]).expect("it does not fail");
            let last = &logits[2 * tiny.vocab_len..];
            let mut sorted = last.to_vec();
            sorted.sort_by(f32::total_cmp);
            let name = tensor_type.name();
            assert!(last.iter().all(|x| x.is_finite() && x.abs() < 100.0), "{name}: {sorted:?}");
            assert!(sorted.windows(2).filter(|w| w[0] == w[1]).count() < 5, "{name}: {sorted:?}");
            assert!(sorted[sorted.len() - 1] - sorted[0] > 0.5, "{name}: {sorted:?}");
        }
    }

    /// What a device is sent is as much as the published model has.
    #[test]
    fn a_published_shape_has_as_many_weights_as_its_authors_say() {
        // The whole file of the largest would take a minute in a test; sizes are sums over the directory alone.
        let count = |name| {
            let tiny = TinyModel::of_shape(name, TensorType::Bf16).expect("it is one");
            let vectors = tiny.vectors(&mut Dice::new(0));
            let [matrices, vectors]: [usize; 2] = [
                tiny.matrices().iter().map(|(_, rows, cols)| rows * cols).sum(),
                vectors.iter().filter(|v| v.name != "rope_freqs.weight").map(|v| v.dimensions[0]).sum(),
            ];
            matrices + vectors
        };
        assert_eq!(count("llama-3.1-8b"), 8_030_261_248);
        assert_eq!(count("llama-3.2-1b"), 1_235_814_400);
        assert_eq!(count("qwen2.5-0.5b"), 494_032_768);
    }
}
