"""Look at what the model writes: `python sample.py wren.gguf [prompt ...]`.

Prompts that begin with "> " are chat turns (several turns: "> a > b"), others are continued as they are.
"""

import sys

import torch

from load import load

PROMPTS = [
    "Once upon a time", "Once upon a time, there was a little robot", "The little dog", "Lily and Tom went to the park.", "It was a dark night",
    "> Hello! Who are you?", "> Tell me a story about a fox.", "> hi", "> what is the opposite of hot", "> What is 7 + 5?", "> Name three animals.",
    "> Why is the sky blue?", "> I am sad today.", "> Tell me a short story about a dragon and a mouse.", "> Say hello world", "> My name is Ada. > What is my name?",
    "> Hello! > What can you do? > Thank you!", "> What is the capital of France?", "> Tell me a joke", "> Write a poem about the moon", "> who won the football game yesterday",
    "> Count to 10", "> What day comes after Monday?", "> How do I make tea?", "> Tell me a story about friendship. > What was the name of the hero?", "> goodbye",
]


@torch.no_grad()
def generate(model, ids, limit, temperature=0.0, end=None, generator=None):
    """Greedy at temperature 0. Returns the new ids, with the end token if it came."""
    out, past, feed = [], None, torch.tensor([ids])
    while len(out) < limit:
        step = model(feed, past_key_values=past, use_cache=True)
        past, logits = step.past_key_values, step.logits[0, -1]
        if temperature == 0:
            pick = int(logits.argmax())
        else:
            pick = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))
        out.append(pick)
        if pick == end:
            break
        feed = torch.tensor([[pick]])
    return out


def main():
    model, tok, chat, meta = load(sys.argv[1])
    torch.set_num_threads(1)
    bos, end = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]
    for prompt in sys.argv[2:] or PROMPTS:
        for temperature in (0.0, 0.8):
            generator = torch.Generator().manual_seed(1)
            print(f"=== {prompt!r} at temperature {temperature}")
            if not prompt.startswith("> "):
                ids = [bos] + tok.encode(prompt, add_special_tokens=False).ids
                out = generate(model, ids, 400, temperature, end, generator)
                print(prompt + tok.decode(out), "" if out[-1] == end else "[no end]")
                continue
            messages = []
            for turn in prompt[2:].split(" > "):
                messages.append({"role": "user", "content": turn})
                text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                out = generate(model, tok.encode(text, add_special_tokens=False).ids, 400, temperature, end, generator)
                messages.append({"role": "assistant", "content": tok.decode(out)})
                print(f"  user: {turn}\n  wren: {messages[-1]['content']}", "" if out[-1] == end else "[no end]")


if __name__ == "__main__":
    main()
