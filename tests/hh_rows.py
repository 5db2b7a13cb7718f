"""Rows in the format of Anthropic's harmless-base file, of random words, and a tokenizer that counts words."""

import gzip
import json
import random


class WordTokenizer:
    """Counts words, which is all that the selection of rows needs."""

    chat_template = None

    def encode(self, text, add_special_tokens):
        return text.split()


def words(rng, count):
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(count))


def dialogue(prompt, answer):
    text = "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(prompt))
    return f"{text}\n\nAssistant: {answer}"


def row(prompt, chosen, rejected):
    return {"chosen": dialogue(prompt, chosen), "rejected": dialogue(prompt, rejected)}


def made_rows(count, longest=8, seed=1):
    """Return rows of random words; every fourth goes on with the dialogue of the one before."""
    rng, rows, prompt = random.Random(seed), [], []
    for i in range(count):
        prompt = [*prompt, words(rng, 3), words(rng, 4)] if i % 4 == 3 else [words(rng, 5)]
        rows.append(row(prompt, words(rng, rng.randint(1, longest)), words(rng, rng.randint(1, longest))))
    return rows


def write(path, rows, pack=True):
    text = "".join(json.dumps(each) + "\n" for each in rows)
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return path
