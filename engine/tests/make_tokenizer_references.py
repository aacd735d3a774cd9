"""Make tests/references/tokenizers.json: small vocabularies of every kind, and what their own libraries make of hard texts.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3
    python engine/tests/make_tokenizer_references.py

Byte-level BPE is trained and run by `tokenizers`, with the cut that each model family uses; SentencePiece by `sentencepiece`.
"""

import io
import json
import pathlib
import random

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent / "references" / "tokenizers.json"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, REST_SLASH = r"[^\r\n\p{L}\p{N}]?", REST.replace(r"[\r\n]*", r"[\r\n/]*")
CUTS = {
    "gpt-2": GPT2,
    "llama-bpe": rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}|{REST}",
    "smollm": GPT2,
    "gpt-4o": rf"{LEAD}{UPPER}*{LOWER}+{CONTRACTIONS}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|{REST_SLASH}",
    "tekken": rf"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*|\p{{N}}|{REST_SLASH}",
}
IGNORES_MERGES = {"llama-bpe", "tekken"}
ADDED = [("<|begin|>", True), ("<|end|>", True), ("<|im_end|>", True), ("<tool>", False), ("<tool_call>", False)]

CORPUS = """Once upon a time, in the year 1984, a fox said: "I'm HERE, you're there; we'll see!" He'd thought it'd be 12,345 steps.
The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX. CamelCaseWords and snake_case_words, x = y[0] + z(1);
    def main(self):\n        return self.value\n\n\tfor i in range(100):\r\n        print(i)\r\n
Das schöne Mädchen aß süße Äpfel über Straßenbahnen; où est la bibliothèque? Él niño comió piñas. Привет, мир! Как дела сегодня?
日本語のテキストを書いています。中文字符也在这里。한국어 텍스트입니다. مرحبا بالعالم. שלום עולם. नमस्ते दुनिया 🦊🌲🎉 emoji 👩‍👩‍👧 family.
http://example.org/path/to/file?q=1&r=2 -- a--b ... ?!?! <b>bold</b> {"key": [1, 2.5, null]} the the the and and and of of of to to to
"""
TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\t x", "\r\n", "a", " a", "a ", "  a  b  ", "Hello", "hello world", "Hello, World!",
    "I'm you're HE'LL we'd it's 'S 'x", "don't can't WON'T", "1", "12", "123", "1234", "1234567890", "3.14159 and 2,718", "x1y22z333", "١٢٣ ४५६ ①②",
    "CamelCase HTTPServer iPhone ABCdef", "snake_case __init__", "a/b//c\\d", "foo.bar(baz)[0];\n\treturn", "    indented\n        more\n", "trailing  \n\n  ",
    "Ünïcödé ñandú Straße", "e\u0301 vs \u00e9 combining", "Привет, мир", "日本語のテキスト", "한국어", "مرحبا بالعالم", "नमस्ते", "🦊", "🦊🌲 x 🎉", "👩‍👩‍👧 family",
    "\u00a0no-break\u2003em", "\u200bzero\u200dwidth", "\u0000null\u0001", "ﬁ ligature ﷺ", "\ufffd replaced", "𝔘𝔫𝔦", "\U0010ffff", "<|end|>", "a<|end|>b", "<|end|><|end|>",
    " <|end|> ", "<|begin|>x <|im_end|>\n", "<|unknown|>", "<|end", "<tool>", "a <tool> b", "<tool_call>x</tool_call>", "<tool><|end|> t", "▁under▁score", " ▁ ", "<0x41>", "<unk> <s> </s>", "a" * 60, "ab " * 30,
]


def fuzz():
    rng = random.Random(7)
    pieces = ["a", "B", " ", "  ", "\n", "é", "日", "🦊", "'s", "'LL", "1", "23", "_", "-", "ß", "e\u0301", "<|end|>", "<tool>", ".", "!?", "\t", "the", "and", "\r\n", "م", "▁", "\u00a0"]
    return ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 14))) for _ in range(60)]


def bpe(name, pattern):
    tok = Tokenizer(models.BPE(ignore_merges=name in IGNORES_MERGES))
    if name == "qwen2":
        tok.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tok.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator([CORPUS] * 3, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False))
    tok.add_tokens([AddedToken(t, special=s, normalized=False) for t, s in ADDED if not s])
    tok.add_special_tokens([AddedToken(t, special=s, normalized=False) for t, s in ADDED if s])
    bos = tok.token_to_id("<|begin|>")
    tok.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", bos)])
    plain = Tokenizer.from_str(tok.to_str())
    plain.encode_special_tokens = True
    cases = []
    for text in TEXTS + fuzz():
        ids = tok.encode(text, add_special_tokens=False).ids
        assert tok.encode(text).ids == [bos] + ids
        cases.append({"text": text, "ids": ids, "plain_ids": plain.encode(text, add_special_tokens=False).ids,
                      "decoded": tok.decode(ids, skip_special_tokens=False)})
    return {"name": name, "kind": "bpe", "bos": bos, "tokenizer_json": json.loads(tok.to_str()), "cases": cases}


def sentence_piece(name, add_space):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in CORPUS.split("\n") if line] * 3), model_writer=written, vocab_size=440, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=add_space, character_coverage=0.98,
        user_defined_symbols=["<tool>", "<tool_call>"], split_digits=True, minloglevel=2, num_threads=1, allow_whitespace_only_pieces=True)
    sp = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i).startswith("<tool") else 1
             for i in range(sp.get_piece_size())]
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    cases = []
    for text in TEXTS + fuzz():
        # A user-defined piece within a text: llama.cpp and Hugging Face put a space before what follows, this library does not.
        if "<tool" in text or "\u0000" in text:
            continue
        ids = sp.encode(text)
        cases.append({"text": text, "ids": ids, "decoded": sp.decode(ids)})
    return {"name": name, "kind": "spm", "bos": sp.bos_id(), "eos": sp.eos_id(), "add_space": add_space, "pieces": pieces,
            "tokenizer_model": written.getvalue().hex(), "scores": [sp.get_score(i) for i in range(len(pieces))], "kinds": kinds, "cases": cases}


def main():
    sets = [bpe(name, pattern) for name, pattern in CUTS.items()] + [sentence_piece("spaced", True), sentence_piece("bare", False)]
    made = {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__}
    body = ",\n".join(json.dumps(s, ensure_ascii=False, separators=(",", ":")) for s in sets)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(f'{{"made_with":{json.dumps(made)},"sets":[\n{body}\n]}}\n', encoding="utf-8")
    print(OUT.stat().st_size, "bytes", [len(s["cases"]) for s in sets])


if __name__ == "__main__":
    main()
