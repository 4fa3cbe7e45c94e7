"""A tokenizer and files of documents for tests, small enough to check by hand."""

import json

from jaxscale.data.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "a",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
    "the log",
    "the cat and the dog",
    "seven cats and twelve dogs sat on one mat",
]


def tokenizer():
    return Tokenizer.train_bpe(TEXTS * 3, 300)


def write_lines(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def files(folder, num_files=2):
    return [write_lines(folder / f"part-{n}.jsonl", TEXTS[n:] + TEXTS[:n]) for n in range(num_files)]
