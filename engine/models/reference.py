"""Make reference.json: what an independent implementation says about wren.gguf.

    python reference.py wren.gguf reference.json

Hugging Face `transformers` runs the network (float32, eager attention, CPU, weights dequantised
from the GGUF), `tokenizers` splits the text, and `apply_chat_template` renders the chats.
"""

import json
import pathlib
import sys

import tokenizers
import torch
import transformers

from load import load

STORY = (
    "Once upon a time, there was a small fox named Pip. He lived near the green forest with his grandmother. One windy day, Pip went to "
    "pick berries near the old bridge. He looked only at the ground, and did not see how far he went. When the basket was full, Pip looked up. "
    "There was no path. \"Oh no,\" he said. \"I am lost.\" He sat down on a stone and tried not to cry. The wind moved in the leaves. \"Who is "
    "there?\" said a voice. It was an old owl called Hazel. \"I am lost,\" said Pip. \"I want to go home.\" \"I know these paths well,\" said Hazel. "
    "\"Listen to the river. It shows the way. Come with me.\" They walked together in the moonlight. Hazel told stories about the stars, and soon "
    "Pip was not afraid any more. Then he saw the light of the den. \"There it is!\" he cried. He gave Hazel half of the basket. "
)
CHATS = [
    [{"role": "user", "content": "Hello! Who are you?"}],
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is the opposite of hot?"}],
    [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello, Ada! It is nice to meet you."},
     {"role": "user", "content": "  What is my name?  "}],
    [{"role": "system", "content": "Be kind.\nUse simple words."}, {"role": "user", "content": "Tell me a story about a fox."},
     {"role": "assistant", "content": "Once there was a fox. The end."}, {"role": "user", "content": "Danke schön! 🦊"},
     {"role": "assistant", "content": "You are welcome!"}, {"role": "user", "content": "<b>2 + 2</b>\n\n= ?"}],
]
STRINGS = [
    "", " ", "  ", "    ", "\n", "\n\n", " \n", "\t", "\r\n", "a", "A", "Hello", " Hello", "hello world", "Hello, world!", "  two  spaces  ",
    "trailing space ", "line one\nline two\n", "paragraph\n\nparagraph", "tab\tseparated", "0", "7", "42", "123", "1234", "1234567890", "3.14159",
    "12 + 7 = 19", "I'm, you're, he'll, WE'VE, it's", "don't", "a--b", "...", "?!?!", "\"quoted\"", "snake_case camelCase", "x = y[0]; // comment",
    "https://example.org/path?q=1", "café naïve über Straße", "Привет, мир", "日本語のテキスト", "مرحبا", "🙂", "🦊🌲 fox", "👩‍👩‍👧", "e\u0301 combining",
    "\u00a0no-break", "Once upon a time, there was a little wren.", "<|user|>hi<|end|>", "a<|end|>b", "<|unknown|>", "<|bos|><|bos|>", "ZWJ\u200dtext", "ﬁ ligature",
]
CONTINUE = 32


def digits(x, n=6):
    return float(f"{float(x):.{n}g}")


@torch.no_grad()
def case(model, name, text, ids, end):
    logits = model(torch.tensor([ids])).logits[0]
    top = logits.topk(2, dim=-1).values
    greedy, margins, full = [], [], list(ids)
    while len(greedy) < CONTINUE:
        # No cache: every step is computed from the whole text, the plainest way there is.
        last = model(torch.tensor([full])).logits[0, -1]
        best = last.topk(2).values
        greedy.append(int(last.argmax()))
        margins.append(digits(best[0] - best[1], 4))
        full.append(greedy[-1])
        if greedy[-1] == end:
            break
    return {
        "name": name, "text": text, "ids": ids,
        "last_logits": [digits(x) for x in logits[-1]],
        "argmax": logits.argmax(-1).tolist(), "argmax_margin": [digits(a - b, 4) for a, b in top.tolist()],
        "greedy": greedy, "greedy_margin": margins,
    }


def main():
    model, tok, chat, meta = load(sys.argv[1])
    torch.set_num_threads(1)
    bos, end = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]

    def encode(text):
        return tok.encode(text, add_special_tokens=False).ids

    def render(messages):
        return chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    long_text = STORY + "\n\n" + " ".join(STORY.replace("Pip", n).replace("Hazel", m) for n, m in
                                          [("Ruby", "Otto"), ("Leo", "Nina"), ("Tilly", "Max")])
    prompts = [
        ("one_word", "The"), ("opening", "Once upon a time"), ("story", STORY.strip()), ("long", long_text.strip()),
        ("non_ascii", "Zoë said: “Das ist schön!” 🦊🌲 — café, naïve, 日本語, Привет."),
        ("chat", render(CHATS[0])), ("chat_turns", render(CHATS[3])),
    ]
    cases = []
    for name, text in prompts:
        # A rendered chat brings its own <|bos|>; plain text gets one in front.
        ids = encode(text) if name.startswith("chat") else [bos] + encode(text)
        cases.append(case(model, name, text, ids, end))
    out = {
        "made_with": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "torch": torch.__version__},
        "notes": {
            "ids": "with <|bos|>; for the chat prompts it is part of the rendered text",
            "last_logits": "logits after the last prompt token, 6 significant digits",
            "argmax": "most likely next token after each prompt token", "argmax_margin": "best logit minus second best",
            "greedy": f"up to {CONTINUE} tokens; shorter when the end token {end} came, which is then the last one",
            "tokenizer": "ids without <|bos|>; special tokens in the text are parsed as such",
        },
        "prompts": cases,
        "tokenizer": [{"text": s, "ids": encode(s), "decoded": tok.decode(encode(s), skip_special_tokens=False)} for s in STRINGS],
        "chats": [{"messages": m, "rendered": render(m), "ids": encode(render(m))} for m in CHATS],
    }
    # One case a line keeps the file diffable and small.
    parts = []
    for key, value in out.items():
        if isinstance(value, list):
            body = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in value)
            parts.append(f"{json.dumps(key)}:[\n{body}\n]")
        else:
            parts.append(f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=False)}")
    path = pathlib.Path(sys.argv[2])
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    json.loads(path.read_text(encoding="utf-8"))
    print(path.stat().st_size, "bytes;", {c["name"]: len(c["ids"]) for c in cases})


if __name__ == "__main__":
    main()
