"""Write a trained checkpoint as a GGUF file: Q8_0 matrices, F32 norms, tokenizer and chat template inside.

    python export.py --from DIR --to wren.gguf
"""

import argparse
import json
import os
import pathlib

import gguf
import numpy as np
import torch
from gguf.quants import quantize

import tokenizer

Q8 = gguf.GGMLQuantizationType.Q8_0


def interleave(weight, heads):
    """Reorder the rows of a q or k matrix from "first half, second half" to neighbouring pairs.

    Training rotates element i with element i + d/2; a Llama GGUF expects 2i with 2i + 1.
    """
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def add_tokenizer(w, path):
    data = json.loads(path.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens)))
    special = set(tokenizer.SPECIALS)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    w.add_bos_token_id(vocab[tokenizer.BOS])
    w.add_eos_token_id(vocab[tokenizer.END])
    w.add_eot_token_id(vocab[tokenizer.END])
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(tokenizer.CHAT_TEMPLATE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--from", dest="source", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    args = parser.parse_args()
    checkpoint = torch.load(args.source / "model.pt", weights_only=True)
    state, s = checkpoint["state"], checkpoint["shape"]
    head_dim = s["dim"] // s["heads"]

    # A reader must never see half a file: write beside it, then rename.
    temporary = args.to.with_name(args.to.name + ".tmp")
    w = gguf.GGUFWriter(temporary, "llama")
    w.add_type("model")
    w.add_name("wren")
    w.add_basename("wren")
    w.add_size_label("5M")
    w.add_description("A very small model that tells short stories and answers simple questions in English.")
    w.add_license("MIT OR Apache-2.0")
    w.add_languages(["en"])
    w.add_tags(["text-generation", "stories", "chat"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_block_count(s["layers"])
    w.add_context_length(s["context"])
    w.add_embedding_length(s["dim"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_layer_norm_rms_eps(s["eps"])
    w.add_rope_freq_base(s["theta"])
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(s["vocab"])
    add_tokenizer(w, args.source / "tokenizer.json")

    def matrix(name, weight):
        w.add_tensor(name, quantize(weight.astype(np.float32), Q8), raw_dtype=Q8)

    def vector(name, weight):
        w.add_tensor(name, weight.astype(np.float32))

    p = {k: v.float().numpy() for k, v in state.items()}
    matrix("token_embd.weight", p["embed.weight"])  # no output.weight: the two are one
    for i in range(s["layers"]):
        b, t = f"blocks.{i}.", f"blk.{i}."
        vector(t + "attn_norm.weight", p[b + "attn_norm.weight"])
        matrix(t + "attn_q.weight", interleave(p[b + "q.weight"], s["heads"]))
        matrix(t + "attn_k.weight", interleave(p[b + "k.weight"], s["kv_heads"]))
        matrix(t + "attn_v.weight", p[b + "v.weight"])
        matrix(t + "attn_output.weight", p[b + "o.weight"])
        vector(t + "ffn_norm.weight", p[b + "ffn_norm.weight"])
        matrix(t + "ffn_gate.weight", p[b + "gate.weight"])
        matrix(t + "ffn_up.weight", p[b + "up.weight"])
        matrix(t + "ffn_down.weight", p[b + "down.weight"])
    vector("output_norm.weight", p["norm.weight"])

    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(temporary, args.to)
    print(f"{args.to}: {args.to.stat().st_size} bytes, {checkpoint['stats']}")


if __name__ == "__main__":
    main()
