"""Read wren.gguf back into Hugging Face objects, using nothing but what is in the file.

The network is transformers' LlamaForCausalLM in float32 with the dequantised weights; the tokenizer
is a `tokenizers` object built from the metadata. Both are independent of the engine.
"""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenizer import blank


def uninterleave(weight, heads):
    """Undo the row order of the GGUF: neighbouring pairs back to first half, second half."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def load(path):
    reader = gguf.GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"], hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"], num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        hidden_act="silu", tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        bos_token_id=meta["tokenizer.ggml.bos_token_id"], eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        attn_implementation="eager",
    )
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {}
    for t in reader.tensors:
        value = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
        if t.name == "token_embd.weight":
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = torch.from_numpy(value)
        elif t.name == "output_norm.weight":
            state["model.norm.weight"] = torch.from_numpy(value)
        else:
            _, layer, part, _ = t.name.split(".")
            if part in ("attn_q", "attn_k"):
                value = uninterleave(value, heads if part == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{names[part]}.weight"] = torch.from_numpy(np.ascontiguousarray(value))
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state, strict=True)

    tokens = meta["tokenizer.ggml.tokens"]
    types = meta["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tok = blank({t: i for i, t in enumerate(tokens)}, merges)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False)
                            for t, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])
    chat = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
                                   eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]])
    chat.chat_template = meta["tokenizer.chat_template"]
    return model, tok, chat, meta
