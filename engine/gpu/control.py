#!/usr/bin/env python3
"""The control beside `orchestratord device speed`: the same shapes in PyTorch, on the same machine, as fast as it gets them
with what it brings.

    control.py check --binary ORCHESTRATORD    holds its logits against the engine's, for one random model
    control.py speed [--shape ...] [--json FILE]

A Llama with random bf16 weights and a static KV cache; a layer's decode step is compiled by Inductor, tuned for lone rows, and
a whole step is one CUDA graph, in which the likeliest token becomes the next one's input. int8: weights are bytes with a
scale a row, made bf16 where they are multiplied, for lone rows. The method is that of gpt-fast (github.com/meta-pytorch/gpt-fast);
its one model-wide compile is one of a layer here, which all layers share, since 32 copies of it compile for minutes. Prompts
are read by PyTorch's own kernels in a CUDA graph. Where Inductor has no compiler to work with, steps are that as well, and
the lines say so.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"no PyTorch here: {error}")
    sys.exit(3)

EPSILON = 1e-5
WARM_STEPS = 3


@dataclass(frozen=True)
class Shape:
    """A model's sizes, as `TinyModel::of_shape` in engine/src/testing/shapes.rs has them."""

    layers: int
    embedding: int
    ffn: int
    heads: int
    heads_kv: int
    head_len: int
    vocab: int
    base: float
    tied: bool
    biases: bool = False

    @property
    def qkv(self):
        return [self.heads * self.head_len, self.heads_kv * self.head_len, self.heads_kv * self.head_len]


SHAPES = {
    "tiny": Shape(2, 64, 96, 4, 2, 16, 320, 5e5, False),
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151936, 1e6, True, True),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 5e5, True),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 5e5, False),
}


@dataclass
class Weights:
    """A matrix is a tensor [out, in], or one of bytes and its rows' scales. A layer is a tuple: norm, qkv, biases of qkv or
    None, output of attention, norm, gate and up as one, down."""

    embedding: torch.Tensor
    layers: list
    norm: torch.Tensor
    output: object
    frequencies: torch.Tensor

    def step_bytes(self):
        """Bytes that a decode step reads of them."""
        tensors = [self.norm, self.output, *[part for layer in self.layers for part in layer]]
        parts = [t for part in tensors if part is not None for t in (part if isinstance(part, tuple) else (part,))]
        return sum(t.numel() * t.element_size() for t in parts)


def rotation_frequencies(shape, device):
    half = torch.arange(shape.head_len // 2, device=device, dtype=torch.float32)
    return shape.base ** (-2 * half / shape.head_len)


def random_weights(shape, kind, device):
    """Weights of about the size that keeps activations finite, none of them zero by intent."""
    torch.manual_seed(1)
    dtype = torch.bfloat16

    def matrix(rows, cols):
        made = torch.empty(rows, cols, device=device, dtype=dtype).uniform_(-1.7 / cols**0.5, 1.7 / cols**0.5)
        if kind == "bf16":
            return made
        scales = made.abs().amax(dim=1, keepdim=True).float() / 127
        return ((made / scales).round().to(torch.int8), scales.squeeze(1).to(dtype))

    def norm():
        return torch.empty(shape.embedding, device=device, dtype=dtype).uniform_(0.8, 1.2)

    def bias():
        return torch.empty(sum(shape.qkv), device=device, dtype=dtype).uniform_(-0.2, 0.2) if shape.biases else None

    embedding = torch.empty(shape.vocab, shape.embedding, device=device, dtype=dtype).uniform_(-0.03, 0.03)
    layers = [
        (
            norm(),
            matrix(sum(shape.qkv), shape.embedding),
            bias(),
            matrix(shape.embedding, shape.heads * shape.head_len),
            norm(),
            matrix(2 * shape.ffn, shape.embedding),
            matrix(shape.embedding, shape.ffn),
        )
        for _ in range(shape.layers)
    ]
    # Where output and embedding are one matrix it stays bf16: its rows are looked up, too.
    output = embedding if shape.tied else matrix(shape.vocab, shape.embedding)
    return Weights(embedding, layers, norm(), output, rotation_frequencies(shape, device))


def linear(x, weight):
    if isinstance(weight, tuple):
        elements, scales = weight
        return F.linear(x, elements.to(x.dtype)) * scales
    return F.linear(x, weight)


def rms_norm(x, weight):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype) * weight


def rotate(x, cos, sin, neighbours):
    """x [batch, rows, heads, head_len]; cos and sin [rows, head_len / 2]."""
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    wide = x.float()
    if neighbours:
        first, second = wide[..., 0::2], wide[..., 1::2]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    else:
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def layer_step(shape, neighbours, x, layer, keys, values, cells, cos, sin, mask):
    """One layer over x [batch, rows, embedding]; keys and values [batch, heads_kv, cache, head_len] get the rows' cells. With a
    mask [1, 1, 1, cache], a lone row attends to the cache; without, the rows to those among them at and before their own."""
    attention_norm, qkv, bias, attention_output, ffn_norm, gate_up, down = layer
    batch, rows, _ = x.shape
    made = linear(rms_norm(x, attention_norm), qkv)
    if bias is not None:
        made = made + bias
    q, k, v = made.split(shape.qkv, dim=-1)
    q = rotate(q.view(batch, rows, shape.heads, shape.head_len), cos, sin, neighbours)
    k = rotate(k.view(batch, rows, shape.heads_kv, shape.head_len), cos, sin, neighbours).transpose(1, 2)
    v = v.view(batch, rows, shape.heads_kv, shape.head_len).transpose(1, 2)
    keys.index_copy_(2, cells, k)
    values.index_copy_(2, cells, v)
    if mask is None:
        q = q.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    else:
        # Heads that share keys stand where rows do, so that nothing is read twice.
        q = q.view(batch, shape.heads_kv, shape.heads // shape.heads_kv, shape.head_len)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    x = x + linear(attended.reshape(batch, rows, -1), attention_output)
    gate, up = linear(rms_norm(x, ffn_norm), gate_up).chunk(2, dim=-1)
    return x + linear(F.silu(gate) * up, down)


def logits_of(x, norm, output):
    return linear(rms_norm(x[:, -1], norm), output)


def likeliest(x, norm, output):
    return logits_of(x, norm, output).argmax(-1, keepdim=True)


class Model:
    """Weights with a cache for `batch` sequences, and the state of a step, all of it in place."""

    def __init__(self, shape, weights, batch, cells, compiled=False, neighbours=True):
        self.shape, self.weights, self.neighbours = shape, weights, neighbours
        device, dtype = weights.embedding.device, weights.embedding.dtype
        # Attention kernels want masks in rows of whole sixteen bytes.
        self.cells = -(-cells // 16) * 16
        room = (batch, shape.heads_kv, self.cells, shape.head_len)
        self.cache = [
            (torch.zeros(room, device=device, dtype=dtype), torch.zeros(room, device=device, dtype=dtype))
            for _ in range(shape.layers)
        ]
        self.tokens = torch.zeros(batch, 1, device=device, dtype=torch.long)
        self.position = torch.zeros(1, device=device, dtype=torch.long)
        angles = torch.outer(torch.arange(self.cells, device=device, dtype=torch.float32), weights.frequencies)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.places = torch.arange(self.cells, device=device)
        self.layer, self.likeliest = layer_step, likeliest
        if compiled:
            self.layer = torch.compile(layer_step, dynamic=False, fullgraph=True)
            self.likeliest = torch.compile(likeliest, dynamic=False, fullgraph=True)

    def cell_bytes(self):
        """Bytes of keys and values of one token."""
        keys = self.cache[0][0]
        return 2 * self.shape.layers * self.shape.heads_kv * self.shape.head_len * keys.element_size()

    def hidden(self, tokens, cells, mask, layer):
        x = self.weights.embedding[tokens]
        cos, sin = self.cos[cells], self.sin[cells]
        for weights, (keys, values) in zip(self.weights.layers, self.cache):
            x = layer(self.shape, self.neighbours, x, weights, keys, values, cells, cos, sin, mask)
        return x

    def decode_hidden(self):
        mask = (self.places <= self.position)[None, None, None, :]
        return self.hidden(self.tokens, self.position, mask, self.layer)

    def decode(self):
        """The next token of every sequence takes the place of the last."""
        self.tokens.copy_(self.likeliest(self.decode_hidden(), self.weights.norm, self.weights.output))
        self.position.add_(1)

    def prefill(self, prompt):
        """Reads prompts [batch, rows] from their beginning."""
        cells = self.places[: prompt.shape[1]]
        x = self.hidden(prompt, cells, None, layer_step)
        self.tokens.copy_(likeliest(x, self.weights.norm, self.weights.output))
        self.position.fill_(prompt.shape[1])


def captured(work, device):
    """What does all of `work` at once: a CUDA graph where there is CUDA. It has run before it is captured."""
    if device != "cuda":
        work()
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def timed(work, count, device):
    """Seconds of each of `count` runs, one after the other without the host in between."""
    if device != "cuda":
        times = []
        for _ in range(count):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1e3 for first, second in zip(marks, marks[1:])]


def percentile(values, percent):
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def ready(shape, weights, kind, batch, prompt_len, decode, device):
    """A model, what does a step of it, and how; compiled where that can be done."""
    cells = prompt_len + decode + WARM_STEPS + 4
    # Lone rows are products that Inductor writes itself; for more it calls a library, and there is little to tune.
    torch._inductor.config.coordinate_descent_tuning = batch == 1
    torch._dynamo.reset()
    start = time.perf_counter()
    try:
        model = Model(shape, weights, batch, cells, compiled=True)
        model.position.fill_(prompt_len)
        model.decode()
        how = "compiled layers"
    except Exception as error:  # Inductor fails in many ways, all of which mean that it cannot be used here.
        if kind != "bf16":
            raise
        why = (str(error).strip().splitlines() or ["?"])[0][:100]
        how = f"not compiled ({type(error).__name__}: {why})"
        model = Model(shape, weights, batch, cells)
    step = captured(model.decode, device)
    return model, step, f"{how}, ready in {time.perf_counter() - start:.1f} s"


def measure(name, shape, weights, kind, batch, prompt_len, decode, device):
    """One case, as `device speed` writes it; without steps, what is asked for is the first token."""
    prompt = torch.randint(shape.vocab, (batch, prompt_len), device=device)
    if decode:
        model, step, how = ready(shape, weights, kind, batch, prompt_len, decode, device)
    else:
        model, step, how = Model(shape, weights, batch, prompt_len), None, "prompt only"
    read = captured(lambda: model.prefill(prompt), device)
    prefill = statistics.median(timed(read, 3, device))
    case = {
        "kind": "case",
        "by": "pytorch",
        "shape": name,
        "type": kind,
        "batch": batch,
        "prompt": prompt_len,
        "decode": decode,
        "prefill_s": prefill,
        "step_bytes": weights.step_bytes() + batch * (prompt_len + decode // 2) * model.cell_bytes(),
        "how": f"torch {torch.__version__}{', CUDA graphs' if device == 'cuda' else ''}, {how}",
    }
    if step:
        timed(step, WARM_STEPS, device)
        read()
        steps = timed(step, decode, device)
        case["tokens_per_s"] = batch * decode / sum(steps)
        case["step_us_p50"], case["step_us_p99"] = (percentile(steps, percent) * 1e6 for percent in (50, 99))
    if device == "cuda":
        case["device_bytes"] = torch.cuda.max_memory_allocated()
    return case


def cases(arguments):
    """Lone sequences of every shape first, then batches."""
    for shape in arguments.shape:
        for kind in arguments.type:
            # One shape says what bytes give.
            if 1 in arguments.batch and (kind == "bf16" or shape == arguments.shape[0]):
                yield shape, kind, 1, arguments.prompt, arguments.decode
            for prompt in arguments.long:
                if kind == "bf16":
                    yield shape, kind, 1, prompt, 0
    for shape in arguments.shape:
        for batch in arguments.batch:
            # Inductor would write out int8 weights as bf16 for more rows than one.
            if batch > 1:
                yield shape, "bf16", batch, arguments.prompt, min(arguments.decode, max(32, 2048 // batch))


@torch.inference_mode()
def speed(arguments):
    import torch._dynamo
    import torch._inductor.config

    device = arguments.device
    torch._inductor.config.triton.unique_kernel_names = True
    torch.set_float32_matmul_precision("high")
    deadline = time.monotonic() + arguments.seconds
    known, failed = None, 0
    if device == "cuda":
        print(f"# torch {torch.__version__} on {torch.cuda.get_device_name()}", flush=True)
    for name, kind, batch, prompt, decode in cases(arguments):
        title = f"{name} {kind} batch {batch:<3} prompt {prompt:<4}"
        if time.monotonic() >= deadline:
            print(f"left out: {title}: the time is over", flush=True)
            continue
        try:
            if known is None or known[0] != (name, kind):
                known = None
                if device == "cuda":
                    torch.cuda.empty_cache()
                known = (name, kind), random_weights(SHAPES[name], kind, device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            case = measure(name, SHAPES[name], known[1], kind, batch, prompt, decode, device)
        except Exception as error:  # One case that fails is no reason to leave out the others.
            failed += 1
            print(f"BAD  {title}: {type(error).__name__}: {str(error).strip()[:300]}", flush=True)
            continue
        steps = ""
        if "tokens_per_s" in case:
            steps = (
                f", {case['tokens_per_s']:.1f} tokens/s, step {case['step_us_p50']:.0f} us p99 {case['step_us_p99']:.0f}, "
                f"{case['step_bytes'] * case['tokens_per_s'] / batch / 1e9:.0f} GB/s"
            )
        print(f"ok   {title} first token {case['prefill_s'] * 1e3:.1f} ms{steps}; {case['how']}", flush=True)
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(case) + "\n")
    return 1 if failed else 0


def read_gguf(path):
    """Metadata and tensors of a GGUF file whose matrices are F32, F16 or BF16, as f32."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    at = 4

    def number(size, signed=False):
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "little", signed=signed)

    def text():
        nonlocal at
        length = number(8)
        at += length
        return data[at - length : at].decode(errors="replace")

    def value(kind):
        nonlocal at
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = number(4), number(8)
            return [value(inner) for _ in range(count)]
        size = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind]
        if kind in (6, 12):
            at += size
            dtype = torch.float32 if kind == 6 else torch.float64
            return torch.frombuffer(data, dtype=dtype, count=1, offset=at - size).item()
        return number(size, signed=kind in (1, 3, 5, 11))

    version, tensor_count, key_count = number(4), number(8), number(8)
    assert data[:4] == b"GGUF" and version == 3, "no GGUF file of version 3"
    keys = {}
    for _ in range(key_count):
        key = text()
        keys[key] = value(number(4))
    places = []
    for _ in range(tensor_count):
        name = text()
        dimensions = [number(8) for _ in range(number(4))]
        places.append((name, dimensions[::-1], number(4), number(8)))
    start = -(-at // 32) * 32
    dtypes = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
    tensors = {
        name: torch.frombuffer(data, dtype=dtypes[kind], count=math.prod(dimensions), offset=start + offset)
        .view(dimensions)
        .float()
        for name, dimensions, kind, offset in places
    }
    return keys, tensors


def weights_of_file(path):
    """Shape and weights of a model file, as f32; and whether neighbours or halves of a head are rotated together."""
    keys, tensors = read_gguf(path)
    kind = keys["general.architecture"]
    of = lambda name: keys[f"{kind}.{name}"]
    heads, heads_kv = of("attention.head_count"), of("attention.head_count_kv")
    sizes = of("embedding_length"), of("feed_forward_length"), heads, heads_kv, of("attention.key_length")
    tied, biases = "output.weight" not in tensors, "blk.0.attn_q.bias" in tensors
    vocab = tensors["token_embd.weight"].shape[0]
    shape = Shape(of("block_count"), *sizes, vocab, of("rope.freq_base"), tied, biases)

    def layer(index):
        part = lambda name, end="weight": tensors[f"blk.{index}.{name}.{end}"]
        names = ["attn_q", "attn_k", "attn_v"]
        return (
            part("attn_norm"),
            torch.cat([part(name) for name in names]),
            torch.cat([part(name, "bias") for name in names]) if biases else None,
            part("attn_output"),
            part("ffn_norm"),
            torch.cat([part("ffn_gate"), part("ffn_up")]),
            part("ffn_down"),
        )

    frequencies = rotation_frequencies(shape, "cpu")
    if "rope_freqs.weight" in tensors:
        frequencies = frequencies / tensors["rope_freqs.weight"]
    embedding = tensors["token_embd.weight"]
    output = embedding if tied else tensors["output.weight"]
    layers = [layer(index) for index in range(shape.layers)]
    return shape, Weights(embedding, layers, tensors["output_norm.weight"], output, frequencies), kind == "llama"


@torch.inference_mode()
def check(arguments):
    """Logits after a prompt and after each of the tokens that follow, beside the engine's on the CPU, of one random model."""
    tokens = [(7 * i * i + 11 * i + 5) % 300 for i in range(24)]
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        subprocess.run([arguments.binary, "device", "model", "--shape", "tiny", "--type", "bf16", file.name], check=True)
        command = [arguments.binary, "logits", "--model", file.name, "--all-positions", "--json", "--threads", "1"]
        said = subprocess.run([*command, "--tokens", ",".join(map(str, tokens))], check=True, capture_output=True).stdout
        wanted = torch.tensor(json.loads(said)["logits"])
        shape, weights, neighbours = weights_of_file(file.name)
    model = Model(shape, weights, 1, len(tokens), arguments.compiled, neighbours)
    prompt_len = len(tokens) // 2
    cells = model.places[:prompt_len]
    x = model.hidden(torch.tensor([tokens[:prompt_len]]), cells, None, layer_step)
    got = list(linear(rms_norm(x[0], weights.norm), weights.output))
    for position in range(prompt_len, len(tokens)):
        model.position.fill_(position)
        model.tokens.fill_(tokens[position])
        got.append(logits_of(model.decode_hidden(), weights.norm, weights.output)[0])
    error = (torch.stack(got) - wanted).abs().max().item()
    spread = (wanted.max() - wanted.min()).item()
    print(f"largest difference of logits from the engine's: {error:.1e}; they spread over {spread:.1f}")
    return 0 if error < 1e-3 and spread > 1 else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check")
    one.add_argument("--binary", required=True)
    one.add_argument("--compiled", action="store_true", help="by Inductor, on the CPU")
    two = commands.add_parser("speed")
    numbers = lambda text: [int(number) for number in text.split(",") if number]
    two.add_argument("--shape", type=lambda t: t.split(","), default=["llama-3.1-8b", "llama-3.2-1b"])
    two.add_argument("--type", type=lambda t: t.split(","), default=["bf16", "int8"])
    two.add_argument("--batch", type=numbers, default=[1, 8, 32, 128, 256])
    two.add_argument("--prompt", type=int, default=128)
    two.add_argument("--decode", type=int, default=256)
    two.add_argument("--long", type=numbers, default=[1024, 8192])
    two.add_argument("--seconds", type=int, default=600, help="what is not begun by then is left out")
    two.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    two.add_argument("--json", help="adds a line of JSON a case to this file")
    arguments = parser.parse_args()
    if arguments.command == "check":
        return check(arguments)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here")
        return 3
    return speed(arguments)


if __name__ == "__main__":
    sys.exit(main())
