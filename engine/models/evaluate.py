"""Count how often wren.gguf is right, and how often it stops by itself: `python evaluate.py wren.gguf`.

Everything asked here is of a kind seen in training; the sums and most fact questions were themselves
seen. The counts say what the model has kept, not how well it generalises.
"""

import random
import sys

import torch

import chat as topics
from load import load
from sample import generate
from stories import ANIMALS


def main():
    model, tok, chat, meta = load(sys.argv[1])
    torch.set_num_threads(1)
    bos, end = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]
    rng = random.Random(5)

    def answer(messages, limit=400, temperature=0.0, generator=None):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        out = generate(model, tok.encode(text, add_special_tokens=False).ids, limit, temperature, end, generator)
        return tok.decode(out), out[-1] == end

    def count(name, tests):
        good, missed = 0, []
        for question, expected in tests:
            got, _ = answer(question, 60)
            ok = expected.lower() in got.lower()
            good += ok
            if not ok:
                missed.append(f"{question!r}: {got!r}")
        print(f"{name}: {good} of {len(tests)}", flush=True)
        for line in missed[:4]:
            print("   ", line)

    pairs = [(a, b) for a in range(21) for b in range(21)]
    count("sums a + b, both up to 20", [(f"What is {a} + {b}?", f"is {a + b}.") for a, b in rng.sample(pairs, 100)])
    small = [(a, b) for a in range(11) for b in range(11)]
    count("sums a + b, both up to 10", [(f"What is {a} + {b}?", f"is {a + b}.") for a, b in small])
    count("differences up to 20", [(f"What is {a} - {b}?", f"is {a - b}.") for a, b in rng.sample([p for p in pairs if p[0] >= p[1]], 60)])
    count("products up to 10", [(f"What is {a} times {b}?", f"is {a * b}.") for a, b in rng.sample(small, 60)])
    count("opposites", [(f"What is the opposite of {a}?", b) for a, b in topics.OPPOSITES if a != "right"])
    count("capitals", [(f"What is the capital of {a}?", b) for a, b in topics.CAPITALS])
    count("colours", [(f"what colour is {a}", b) for a, b in topics.COLOURS])
    count("days", [(f"What day comes after {a}?", topics.DAYS[(i + 1) % 7]) for i, a in enumerate(topics.DAYS)])
    count("months", [(f"What month comes after {a}?", topics.MONTHS[(i + 1) % 12]) for i, a in enumerate(topics.MONTHS)])
    count("names remembered", [([{"role": "user", "content": f"My name is {n}."},
                                 {"role": "assistant", "content": f"Hello, {n}! It is nice to meet you."},
                                 {"role": "user", "content": "What is my name?"}], n)
                               for n in topics.GIRLS[:15] + topics.BOYS[:15] + [topics.cap(topics.made_up(rng)) for _ in range(20)]])

    generator = torch.Generator().manual_seed(5)
    kinds = rng.sample(sorted(ANIMALS), 30)
    said = ended = 0
    for kind in kinds:
        text, stop = answer(f"Tell me a story about {topics.an(kind)}.", 500, 0.8, generator)
        said += kind in text
        ended += stop
    print(f"asked for a story about an animal, at temperature 0.8: {said} of {len(kinds)} are about it, {ended} end by themselves", flush=True)
    ended = words = 0
    for _ in range(20):
        out = generate(model, [bos] + tok.encode("Once upon a time", add_special_tokens=False).ids, 500, 0.8, end, generator)
        ended += out[-1] == end
        words += len(tok.decode(out).split())
    print(f"\"Once upon a time\", at temperature 0.8: {ended} of 20 end by themselves, {words / 20:.0f} words on average")


if __name__ == "__main__":
    main()
