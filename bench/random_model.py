"""Write a GGUF file with the shape of a real model and random weights, for measuring speed.

    pip install gguf numpy
    python random_model.py qwen2.5-0.5b|llama-3.2-1b q8_0|q4_0|q4_k_m|bf16 FILE

Blocks are random bits with scales of a sane size, so that activations stay finite; the text is nonsense. Mixtures are
those of llama.cpp: Q4_K_M has Q6_K for the output and for values and down-projections of some layers, and where a row is
no multiple of 256, Q5_0 and Q8_0 in their place.
"""

import itertools
import sys

import gguf
import numpy as np

SHAPES = {
    "qwen2.5-0.5b": dict(arch="qwen2", layers=24, embedding=896, ffn=4864, heads=14, kv_heads=2, head_len=64,
                         vocab=151936, merges=151387, base=1e6, biases=True, factors=False),
    "llama-3.2-1b": dict(arch="llama", layers=16, embedding=2048, ffn=8192, heads=32, kv_heads=8, head_len=64,
                         vocab=128256, merges=280147, base=5e5, biases=False, factors=True),
}
# Where half-precision scales lie in a block, and what the largest element is made of.
SCALES = {"Q4_0": ([0], 8), "Q5_0": ([0], 16), "Q8_0": ([0], 128), "Q4_K": ([0, 2], 945), "Q6_K": ([208], 4096)}
dice = np.random.default_rng(1)


def blocks(kind, rows, cols):
    """Random elements of a tensor type, of about the size that keeps activations as large as they were."""
    size = 1.7 / np.sqrt(cols)
    if kind.name == "BF16":
        floats = dice.uniform(-size, size, rows * cols).astype(np.float32)
        return (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows, cols * 2)
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = rows * cols // block_len
    out = dice.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    places, factor = SCALES[kind.name]
    for at in places:
        scale = (size / factor * dice.uniform(0.7, 1.3, count)).astype(np.float16)
        # A minimum is about half of what the elements reach above it.
        scale = scale if at == 0 or kind.name == "Q6_K" else (scale * 7.5).astype(np.float16)
        out[:, at:at + 2] = scale.view(np.uint8).reshape(count, 2)
    return out.reshape(rows, cols // block_len * block_bytes)


def vocabulary(letters, count, merge_count):
    """All words of one to three of 27 letters and as many of four as fit, and as many merges as the real model has: a way to
    make each word of two, then more ways."""
    alphabet = "abcdefghijklmnopqrstuvwxyz\u0120"
    longer = ("".join(word) for length in (2, 3, 4) for word in itertools.product(alphabet, repeat=length))
    words = letters + list(itertools.islice(longer, count - len(letters)))
    cuts = ((word, at) for at in (1, 2, 3) for word in words[len(letters):] if at < len(word))
    merges = [f"{word[:at]} {word[at:]}" for word, at in itertools.islice(cuts, merge_count)]
    return words, merges


def kind_of(mixture, name, layer, layers, cols):
    types = gguf.GGMLQuantizationType
    if mixture != "q4_k_m":
        return types[mixture.upper()]
    eighth = layers // 8
    more = layer is not None and (layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2)
    better = name == "token_embd" or (name in ("attn_v", "ffn_down") and more)
    if cols % 256:
        return types.Q8_0 if better else types.Q5_0
    return types.Q6_K if better else types.Q4_K


def main():
    name, mixture, path = sys.argv[1:]
    s = SHAPES[name]
    w = gguf.GGUFWriter(path, s["arch"])
    w.add_name(f"{name}-random")
    w.add_context_length(4096)
    w.add_block_count(s["layers"])
    w.add_embedding_length(s["embedding"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_key_length(s["head_len"])
    w.add_value_length(s["head_len"])
    w.add_rope_dimension_count(s["head_len"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(s["base"])
    w.add_vocab_size(s["vocab"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2" if s["arch"] == "qwen2" else "llama-bpe")
    # All bytes as byte-level BPE writes them, then names.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]
    words, merges = vocabulary(letters, s["vocab"] - 1, s["merges"])
    tokens = words + ["<|end|>"]
    w.add_token_list(tokens)
    w.add_token_types([1] * (len(tokens) - 1) + [3])
    w.add_token_merges(merges)
    w.add_bos_token_id(len(tokens) - 1)
    w.add_eos_token_id(len(tokens) - 1)

    def matrix(full, short, layer, rows, cols):
        kind = kind_of(mixture, short, layer, s["layers"], cols)
        w.add_tensor(full, blocks(kind, rows, cols), raw_dtype=kind)

    def vector(full, values):
        w.add_tensor(full, values.astype(np.float32))

    query, key = s["heads"] * s["head_len"], s["kv_heads"] * s["head_len"]
    matrix("token_embd.weight", "token_embd", None, s["vocab"], s["embedding"])
    vector("output_norm.weight", np.ones(s["embedding"]))
    if s["factors"]:
        vector("rope_freqs.weight", np.linspace(1, 32, s["head_len"] // 2))
    for i in range(s["layers"]):
        for short, rows, cols in [
            ("attn_q", query, s["embedding"]), ("attn_k", key, s["embedding"]), ("attn_v", key, s["embedding"]),
            ("attn_output", s["embedding"], query), ("ffn_gate", s["ffn"], s["embedding"]),
            ("ffn_up", s["ffn"], s["embedding"]), ("ffn_down", s["embedding"], s["ffn"]),
        ]:
            matrix(f"blk.{i}.{short}.weight", short, i, rows, cols)
        for short, length in [("attn_q", query), ("attn_k", key), ("attn_v", key)] if s["biases"] else []:
            vector(f"blk.{i}.{short}.bias", dice.uniform(-0.1, 0.1, length))
        vector(f"blk.{i}.attn_norm.weight", np.ones(s["embedding"]))
        vector(f"blk.{i}.ffn_norm.weight", np.ones(s["embedding"]))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
