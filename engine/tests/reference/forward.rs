//! Llama and Qwen2 in plain loops over `f64`, the whole sequence at once, without a cache.

use super::gguf::File;

/// All weights as `f64`.
pub struct Network {
    heads: usize,
    heads_kv: usize,
    head_len: usize,
    eps: f64,
    /// Elements i and i + half are a pair, and not 2i and 2i + 1.
    halves: bool,
    frequencies: Vec<f64>,
    /// Keys and values are rounded to half precision.
    half_cells: bool,
    /// What meets a matrix is rounded to half precision.
    half_activations: bool,
    embedding: Matrix,
    output: Matrix,
    output_norm: Vec<f64>,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Vec<f64>,
    qkv: [Matrix; 3],
    biases: [Option<Vec<f64>>; 3],
    attention_output: Matrix,
    ffn_norm: Vec<f64>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

#[derive(Clone)]
struct Matrix(Vec<f64>, usize);

impl Matrix {
    fn times(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.1);
        self.0.chunks_exact(self.1).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.0[index * self.1..][..self.1]
    }
}

fn norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// The nearest number of half precision, of two the even one; the largest for what is larger.
fn to_half(x: f64) -> f64 {
    let exponent = if x == 0.0 { 0.0 } else { x.abs().log2().floor().max(-14.0) };
    let unit = (exponent - 10.0).exp2();
    ((x / unit).round_ties_even() * unit).clamp(-65504.0, 65504.0)
}

/// Numbers in half precision times the power of two with which the largest is from 2^14 to 2^15.
fn to_halves(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let factor = if largest > 0.0 { (14.0 - largest.log2().floor()).exp2() } else { 1.0 };
    x.iter().map(|x| to_half(x * factor) / factor).collect()
}

impl Network {
    pub fn read(bytes: &[u8]) -> Network {
        let file = File::parse(bytes);
        let architecture = file.strings["general.architecture"].clone();
        let number = |rest: &str| file.numbers.get(&format!("{architecture}.{rest}")).copied();
        let needed = |rest: &str| number(rest).unwrap_or_else(|| panic!("{rest} is missing")) as usize;
        let matrix = |name: String| file.tensor(&name).map(|(elements, cols)| Matrix(elements, cols));
        let must = |name: String| matrix(name.clone()).unwrap_or_else(|| panic!("{name} is missing"));
        let vector = |name: String| file.tensor(&name).map(|(elements, _)| elements);
        let heads = needed("attention.head_count");
        let head_len = number("attention.key_length").map_or(needed("embedding_length") / heads, |n| n as usize);
        let rope_len = number("rope.dimension_count").map_or(head_len, |n| n as usize);
        let base = number("rope.freq_base").unwrap_or(10_000.0);
        let factors = vector("rope_freqs.weight".into()).unwrap_or(vec![1.0; rope_len / 2]);
        let frequencies = (0..rope_len / 2).map(|i| base.powf(-2.0 * i as f64 / rope_len as f64) / factors[i]);
        let layers = (0..needed("block_count")).map(|i| {
            let w = |rest: &str| must(format!("blk.{i}.{rest}.weight"));
            let v = |rest: &str| vector(format!("blk.{i}.{rest}.weight")).expect("a norm");
            Layer {
                attention_norm: v("attn_norm"),
                qkv: [w("attn_q"), w("attn_k"), w("attn_v")],
                biases: ["q", "k", "v"].map(|part| vector(format!("blk.{i}.attn_{part}.bias"))),
                attention_output: w("attn_output"),
                ffn_norm: v("ffn_norm"),
                gate: w("ffn_gate"),
                up: w("ffn_up"),
                down: w("ffn_down"),
            }
        });
        let embedding = must("token_embd.weight".into());
        Network {
            heads,
            heads_kv: needed("attention.head_count_kv"),
            head_len,
            eps: number("attention.layer_norm_rms_epsilon").expect("an epsilon"),
            halves: architecture == "qwen2",
            frequencies: frequencies.collect(),
            half_cells: false,
            half_activations: false,
            layers: layers.collect(),
            output: matrix("output.weight".into()).unwrap_or_else(|| embedding.clone()),
            output_norm: vector("output_norm.weight".into()).expect("a norm"),
            embedding,
        }
    }

    /// With keys and values in half precision, as a CUDA engine keeps them.
    pub fn with_half_cells(self) -> Network {
        Network { half_cells: true, ..self }
    }

    /// With activations in half precision where they meet a matrix, as a CUDA engine has them for weights that are floats.
    pub fn with_half_activations(self) -> Network {
        Network { half_activations: true, ..self }
    }

    fn times(&self, matrix: &Matrix, x: &[f64]) -> Vec<f64> {
        match self.half_activations {
            true => matrix.times(&x.chunks(64).flat_map(to_halves).collect::<Vec<f64>>()),
            false => matrix.times(x),
        }
    }

    /// Logits after each token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        self.hidden_states(tokens).iter().map(|x| self.times(&self.output, x)).collect()
    }

    /// What the output matrix is multiplied with, after each token.
    pub fn hidden_states(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let mut xs: Vec<Vec<f64>> = tokens.iter().map(|t| self.embedding.row(*t as usize).to_vec()).collect();
        for layer in &self.layers {
            let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for (position, x) in xs.iter().enumerate() {
                let y = norm(x, &layer.attention_norm, self.eps);
                let [mut q, mut k, v] = [0, 1, 2].map(|i| {
                    let mut out = self.times(&layer.qkv[i], &y);
                    layer.biases[i].iter().for_each(|bias| add(&mut out, bias));
                    out
                });
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                queries.push(q);
                let cell = |x: Vec<f64>| if self.half_cells { x.into_iter().map(to_half).collect() } else { x };
                keys.push(cell(k));
                values.push(cell(v));
            }
            for (position, x) in xs.iter_mut().enumerate() {
                let attended = self.attend(&queries[position], &keys[..=position], &values[..=position]);
                add(x, &self.times(&layer.attention_output, &attended));
                let y = norm(x, &layer.ffn_norm, self.eps);
                let gate = self.times(&layer.gate, &y).into_iter().map(|g| g / (1.0 + (-g).exp()));
                let product: Vec<f64> = gate.zip(self.times(&layer.up, &y)).map(|(g, u)| g * u).collect();
                add(x, &self.times(&layer.down, &product));
            }
        }
        xs.iter().map(|x| norm(x, &self.output_norm, self.eps)).collect()
    }

    fn rotate(&self, x: &mut [f64], position: usize) {
        for head in x.chunks_exact_mut(self.head_len) {
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = if self.halves { (i, i + self.frequencies.len()) } else { (2 * i, 2 * i + 1) };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }

    fn attend(&self, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let mut out = Vec::new();
        for (index, q) in query.chunks_exact(self.head_len).enumerate() {
            let start = index / (self.heads / self.heads_kv) * self.head_len;
            let head = start..start + self.head_len;
            let dots = keys.iter().map(|k| q.iter().zip(&k[head.clone()]).map(|(q, k)| q * k).sum::<f64>());
            let weights: Vec<f64> = dots.map(|dot| (dot / (self.head_len as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend(head.map(|d| weights.iter().zip(values).map(|(w, v)| w * v[d]).sum::<f64>() / sum));
        }
        out
    }
}
