"""Make tests/references/: tiny random models of every architecture, and what Hugging Face makes of them.

    pip install torch==2.12.1 transformers==5.23.0 gguf==0.19.0 sentencepiece==0.2.3
    python engine/tests/make_references.py

Each model is a Hugging Face folder (bfloat16 weights) and a GGUF file with the same numbers (float32 and bfloat16), written
here with `gguf`. `reference.json` beside them holds what `transformers` computes in float32 on the CPU, eager attention,
without a cache: logits after the last token of each prompt, the likeliest token after every one, and greedy continuations
with their margins. The seed is fixed, so the files come out the same wherever the same versions run.
"""

import json
import math
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "references"
VOCAB = 272
SPECIAL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
LENGTHS = {"short": 3, "middle": 21, "long": 75}
CONTINUE = 32
# Every norm weight is moved away from its neutral value, and every bias away from zero: what is forgotten must show.
COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              head_dim=16, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=None, rms_norm_eps=1e-5)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
        "long_factor": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0], "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

MODELS = {
    "llama2": dict(model_type="llama", rope_parameters=PLAIN, tie_word_embeddings=False),
    "llama3": dict(model_type="llama", rope_parameters=LLAMA3, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "mistral": dict(model_type="mistral", rope_parameters=LINEAR, sliding_window=12, tie_word_embeddings=False),
    "qwen2": dict(model_type="qwen2", rope_parameters=YARN, tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", rope_parameters=PLAIN, tie_word_embeddings=True),
    "gemma2": dict(model_type="gemma2", rope_parameters=PLAIN, sliding_window=12, query_pre_attn_scalar=24, attn_logit_softcapping=5.0,
                   final_logit_softcapping=3.0, tie_word_embeddings=True),
    # Six layers: five local ones and a global one, as the format knows without being told.
    "gemma3": dict(model_type="gemma3_text", num_hidden_layers=6, sliding_window=12, query_pre_attn_scalar=16, tie_word_embeddings=True,
                   rope_parameters={"sliding_attention": PLAIN, "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}),
    # Its configuration has no head_dim: the embedding is cut evenly.
    "phi3": dict(model_type="phi3", rope_parameters=LONG, hidden_size=64, head_dim=None, original_max_position_embeddings=64, sliding_window=None,
                 tie_word_embeddings=False),
}


def shared_tokenizer():
    """Bytes, four control tokens and twelve merges: no more than a model needs to be loaded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL + letters)}
    merges = []
    for left, right in ["Ġt", "he", "in", "er", "an", "on", "re", "Ġa", "Ġs", "ou", "nd", "is"]:
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    assert len(vocab) == VOCAB
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tok, vocab, merges


def random_model(name, settings, seed):
    torch.manual_seed(seed)
    settings = COMMON | settings
    settings = {k: v for k, v in settings.items() if not (k == "head_dim" and v is None)}
    config = transformers.AutoConfig.for_model(**settings)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for key, p in model.named_parameters():
        if p.ndim > 1:
            # Large enough that softmax and caps are far from linear.
            std = (0.5 if config.tie_word_embeddings else 0.9) if "embed" in key or "lm_head" in key else 1.6 / math.sqrt(p.shape[-1])
            if "embed" in key and config.model_type.startswith("gemma"):
                std = 0.1
            torch.nn.init.normal_(p, 0.0, std)
        elif "norm" in key:
            offset = 0.0 if config.model_type.startswith("gemma") else 1.0
            torch.nn.init.normal_(p, offset, 0.25)
        else:
            torch.nn.init.normal_(p, 0.0, 0.3)
    # What is stored is what is computed with.
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16).float()
    return model, config


def permute(weight, heads):
    """Llama's row order in GGUF: what is rotated together stands side by side."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "post_attention_layernorm": "ffn_norm"}
GEMMA_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}


def write_gguf(path, model, config, vocab, merges):
    kind = config.model_type
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(kind, kind)
    gemma = kind.startswith("gemma")
    w = gguf.GGUFWriter(path, arch)
    w.add_name(path.stem)
    w.add_context_length(config.max_position_embeddings)
    w.add_block_count(config.num_hidden_layers)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    rope_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    w.add_rope_dimension_count(rope_dim)
    w.add_rope_freq_base(rope["rope_theta"])
    tensors = {}
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        original = rope["original_max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original)))
        tensors["rope_factors_short.weight"] = np.array(rope["short_factor"], dtype=np.float32)
        tensors["rope_factors_long.weight"] = np.array(rope["long_factor"], dtype=np.float32)
    if rope["rope_type"] == "llama3":
        # The rule as the converter writes it: a divisor for each pair.
        factors = []
        for i in range(0, rope_dim, 2):
            wave = 2 * math.pi * rope["rope_theta"] ** (i / rope_dim)
            low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
            if wave < original / high:
                factors.append(1.0)
            elif wave > original / low:
                factors.append(rope["factor"])
            else:
                smooth = (original / wave - low) / (high - low)
                factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        tensors["rope_freqs.weight"] = np.array(factors, dtype=np.float32)
    if getattr(config, "sliding_window", None):
        w.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if gemma:
        # The scale is not among the format's settings for Gemma; readers derive it from the head's length. Where the
        # model wants another, the general key says so.
        w.add_attention_scale(config.query_pre_attn_scalar ** -0.5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(list(vocab))
    w.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in vocab])
    w.add_token_merges([f"{a} {b}" for a, b in merges])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(True)
    names = NAMES | (GEMMA_NAMES if gemma else {})
    for key, value in model.state_dict().items():
        value = value.numpy()
        if key == "lm_head.weight":
            if config.tie_word_embeddings:
                continue
            name = "output.weight"
        elif key == "model.embed_tokens.weight":
            name = "token_embd.weight"
        elif key == "model.norm.weight":
            name = "output_norm.weight"
        else:
            _, _, layer, *part, end = key.split(".")
            part = ".".join(part)
            name = f"blk.{layer}.{names[part]}.{end}"
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                value = permute(value, config.num_attention_heads if "q_proj" in part else config.num_key_value_heads)
        if gemma and "norm" in name:
            value = value + 1.0
        tensors[name] = np.ascontiguousarray(value, dtype=np.float32)
    for name, value in tensors.items():
        if value.ndim == 1:
            w.add_tensor(name, value)
        else:
            # Every number is one of bfloat16's: nothing is lost.
            half = (value.view(np.uint32) >> 16).astype(np.uint16)
            w.add_tensor(name, half.view(np.uint8), raw_shape=half.view(np.uint8).shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def digits(x, n=6):
    return float(f"{float(x):.{n}g}")


@torch.no_grad()
def case(model, name, ids):
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    best = logits.topk(2, dim=-1).values
    greedy, margins, full = [], [], list(ids)
    while len(greedy) < CONTINUE:
        last = model(torch.tensor([full]), use_cache=False).logits[0, -1]
        top = last.topk(2)
        greedy.append(int(top.indices[0]))
        margins.append(digits(top.values[0] - top.values[1], 3))
        full.append(greedy[-1])
    return {"name": name, "ids": ids, "last_logits": [digits(x) for x in logits[-1]], "argmax": logits.argmax(-1).tolist(),
            "argmax_margin": [digits(a - b, 3) for a, b in best.tolist()], "greedy": greedy, "greedy_margin": margins}


def main():
    torch.set_num_threads(1)
    tok, vocab, merges = shared_tokenizer()
    for number, (name, settings) in enumerate(MODELS.items()):
        model, config = random_model(name, settings, 1000 + number)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        cases = [case(model, label, [0] + rng.integers(len(SPECIAL), VOCAB, size=n - 1).tolist()) for label, n in LENGTHS.items()]
        write_gguf(OUT / f"{name}.gguf", model, config, vocab, merges)
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB" if name == "llama2" else "5GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        tok.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|bos|>", "eos_token": "<|end|>"}))
        made = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
        body = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
        (OUT / f"{name}.json").write_text(f'{{"made_with":{json.dumps(made)},"cases":[\n{body}\n]}}\n')
        margins = [m for c in cases for m in c["greedy_margin"]]
        print(name, sum(f.stat().st_size for f in folder.iterdir()), (OUT / f"{name}.gguf").stat().st_size, "min margin", min(margins),
              "tokens", [len(set(c["greedy"])) for c in cases], "max logit", max(abs(x) for c in cases for x in c["last_logits"]))


if __name__ == "__main__":
    main()
