"""The training text as token arrays: which documents, in which mix, from which seed.

A document is a list of (text, learn) pieces. `learn` is false for what a user or a system message
says: the model reads it, but is not asked to predict it.
"""

import random

import numpy as np

import stories
from chat import conversation
from stories import long_story, raw_story
from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER

ROLE = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def plain(text):
    return [(BOS, False), (text, True), (END, True)]


def chat(messages):
    pieces = [(BOS, False)]
    for role, content in messages:
        learn = role == "assistant"
        pieces += [(ROLE[role], False), (content, learn), (END, learn)]
    return pieces


def document(rng, long):
    """`long` is for the last stretch of training, where rows have 2048 tokens."""
    p = rng.random()
    if long:
        # Up to lesson 2 there was so much of this that the model began to add chapters to short stories.
        saga, talk = (0.40, 0.60) if stories.LESSON < 3 else (0.04, 0.12)
        if p < saga:
            return plain(long_story(rng, rng.randint(4, 8)))
        if p < talk:
            messages = []
            for _ in range(rng.randint(8, 20)):
                part = conversation(rng)
                if stories.LESSON > 2 and part[0][0] == "system":
                    continue  # its answers may not make sense without the system message
                messages += [m for m in part if m[0] != "system"]
            return chat(messages)
        p = rng.random()
    # Stories are four to five times as long as the average conversation.
    story, saga = (0.155, 0.162) if stories.LESSON == 1 else (0.11, 0.116)
    if p < story:
        return plain(raw_story(rng))
    if p < saga:
        return plain(long_story(rng, rng.randint(2, 3)))
    return chat(conversation(rng))


def texts(seed, count):
    """Plain text for the tokenizer."""
    rng = random.Random(seed)
    for _ in range(count):
        for text, _learn in document(rng, False):
            if not text.startswith("<|"):
                yield text


def arrays(tok, seed, tokens, long=False, skip=frozenset()):
    """About `tokens` token ids with a learn flag each, and the set of documents seen.

    Documents in `skip` are left out: held-out text must not be text that was trained on.
    """
    rng = random.Random(seed)
    special = {t: tok.token_to_id(t) for t in (BOS, END, SYSTEM, USER, ASSISTANT)}
    ids, learn, seen = [], [], set()
    total = 0
    while total < tokens:
        docs = []
        for _ in range(1000):
            doc = document(rng, long)
            key = hash("".join(t for t, _ in doc))
            if key in skip:
                continue
            seen.add(key)
            docs.append(doc)
        flat = [t for doc in docs for t, _ in doc if t not in special]
        encoded = iter(tok.encode_batch(flat, add_special_tokens=False))
        for doc in docs:
            for text, flag in doc:
                piece = [special[text]] if text in special else next(encoded).ids
                ids.append(np.array(piece, dtype=np.uint16))
                learn.append(np.full(len(piece), flag))
                total += len(piece)
    return np.concatenate(ids)[:tokens], np.concatenate(learn)[:tokens], seen
