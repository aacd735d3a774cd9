"""Train the tokenizer and the network from nothing but the generator in this folder.

    python train.py --out DIR

writes DIR/tokenizer.json and DIR/model.pt (and keeps the latter up to date while it runs).
"""

import argparse
import json
import math
import pathlib
import time
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

import corpus
import stories
import tokenizer
from model import Shape, Wren

SEED = 20240607
TOKENIZER_DOCS = 20_000


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimiser, one schedule and one revision of the text."""

    lesson: int  # which revision of the generator, see stories.LESSON
    seed: int
    stages: tuple  # (mix, row length, rows per step, tokens)
    peak: float  # learning rate
    floor: float  # the last learning rate as a share of the peak
    warmup: int  # tokens
    planned: int  # tokens for which the schedule is laid out
    stop: int  # tokens after which the phase ends


# Short rows are fast, and most documents fit into them; the rows of 2048 show the model every position of
# its context. The first phase was cut short when the text had been revised; the second goes on from there.
# The third is a short one that makes up for too many long texts at the end of the second, and the
# fourth asks more often who the model is, and with a capital letter in the second sentence, too.
PHASES = [
    Phase(lesson=1, seed=SEED + 1, stages=(("text", 256, 8, 10_000_000),),
          peak=2e-3, floor=0.05, warmup=400_000, planned=13_000_000, stop=7_168_000),
    Phase(lesson=2, seed=SEED + 11, stages=(("text", 256, 8, 2_400_000), ("text", 512, 8, 1_000_000), ("long", 2048, 2, 800_000)),
          peak=1e-3, floor=0.03, warmup=100_000, planned=4_200_000, stop=4_200_000),
    Phase(lesson=3, seed=SEED + 21, stages=(("long", 2048, 2, 300_000), ("text", 256, 8, 1_000_000)),
          peak=8e-4, floor=0.03, warmup=50_000, planned=1_300_000, stop=1_300_000),
    Phase(lesson=4, seed=SEED + 31, stages=(("text", 256, 8, 240_000),),
          peak=6e-4, floor=0.03, warmup=20_000, planned=240_000, stop=240_000),
]
BETAS, DECAY, CLIP = (0.9, 0.98), 0.1, 1.0  # weight decay for matrices only


def learning_rate(phase, done):
    """Linear warm-up, then half a cosine. Counted in tokens, as the batch may change."""
    if done < phase.warmup:
        return phase.peak * (done + 1) / phase.warmup
    x = (done - phase.warmup) / (phase.planned - phase.warmup)
    return phase.peak * (phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))


def rows(ids, learn, length):
    """Cut a token stream into rows of length + 1; the last token of a row is the first of the next."""
    n = (len(ids) - 1) // length
    at = torch.arange(n)[:, None] * length + torch.arange(length + 1)[None, :]
    return torch.from_numpy(ids.astype("int64"))[at], torch.from_numpy(learn)[at]


@torch.no_grad()
def held_out_loss(model, data):
    model.eval()
    total = [float(model.loss(ids, learn)) for ids, learn in zip(data[0].split(16), data[1].split(16))]
    model.train()
    return sum(total) / len(total)


def run_phase(model, tok, phase, out, name, compiled):
    start = time.time()
    stories.LESSON = phase.lesson
    streams, seen = [], set()
    for i, (mix, _, _, tokens) in enumerate(phase.stages):
        ids, learn, docs = corpus.arrays(tok, phase.seed + i, tokens, long=mix == "long")
        streams.append((ids, learn))
        seen |= docs
    ids, learn, _ = corpus.arrays(tok, phase.seed + 1000, 60_000, skip=seen)
    held_out = rows(ids, learn, 256)
    print(f"{name}: {len(seen)} distinct documents, {time.time() - start:.0f} s", flush=True)

    # Compiled for training only, one program for each row length.
    fast = torch.compile(model.hidden, dynamic=False) if compiled else None
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
                            betas=BETAS, fused=True)
    done, step, recent = 0, 0, []

    def save():
        stats = dict(phase=name, step=step, tokens=done, train_loss=sum(recent[-200:]) / len(recent[-200:]),
                     held_out_loss=held_out_loss(model, held_out), seconds=round(time.time() - start))
        print(json.dumps(stats), flush=True)
        for file in (out / f"{name}.pt", out / "model.pt"):
            temporary = file.with_suffix(".tmp")
            torch.save({"state": model.state_dict(), "shape": model.s.__dict__, "stats": stats}, temporary)
            temporary.replace(file)

    for (_, length, batch, _), (ids, learn) in zip(phase.stages, streams):
        data, mask = rows(ids, learn, length)
        order = torch.randperm(len(data))
        for at in range(0, len(order) - batch + 1, batch):
            if done >= phase.stop:
                break
            pick = order[at:at + batch]
            for group in opt.param_groups:
                group["lr"] = learning_rate(phase, done)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(data[pick], mask[pick], fast)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            opt.step()
            opt.zero_grad()
            recent.append(float(loss.detach()))
            step += 1
            done += batch * length
            if step % 50 == 0:
                print(f"step {step} tokens {done} loss {sum(recent[-50:]) / 50:.4f} {time.time() - start:.0f} s", flush=True)
            if step % 250 == 0:
                save()
    save()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="a tenth faster; needs a C++ compiler")
    parser.add_argument("--first-phase", type=int, default=1, help="N goes on from DIR/phaseN-1.pt and DIR/tokenizer.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    model = Wren(Shape(vocab=tokenizer.VOCAB_SIZE))
    if args.first_phase == 1:
        stories.LESSON = 1
        tok = tokenizer.train(list(corpus.texts(SEED, TOKENIZER_DOCS)))
        tok.save(str(args.out / "tokenizer.json"))
    else:
        tok = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        model.load_state_dict(torch.load(args.out / f"phase{args.first_phase - 1}.pt", weights_only=True)["state"])
    for i, phase in enumerate(PHASES, start=1):
        if i > 1:
            # The same order of rows whether this phase follows the one before or starts from its file.
            torch.manual_seed(phase.seed)
        if i >= args.first_phase:
            run_phase(model, tok, phase, args.out, f"phase{i}", args.compile)


if __name__ == "__main__":
    main()
