"""Tokenization's speed: a token dataset made by one process beside the tokenizers library alone, taking turns.

Command: python benchmarks/tokenization.py --corpus ../shared/lm/python-doc --out benchmarks/results/tokenization.jsonl

One JSON row per figure, medians of several runs. Both sides have one thread, the same file and the same vocabulary,
trained on it. The peer has the texts in memory, does nothing but `encode_batch_fast` and takes the ids. Ours reads and
decompresses the file, checks and encodes its texts, ends each, writes ids, offsets and packs, and makes them durable.
The ratio of processor time leaves out what waits for the disk and for other programs.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

# Both sides in one thread; must be set before the library makes its threads.
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers

from jaxscale.data.documents import find_files, read_documents
from jaxscale.data.token_dataset import TokenDataset
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.data.tokenizer import Tokenizer

TEXTS_PER_CALL = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a file or folder of documents")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="bench-tokenize-") as folder:
        rows = measure(flags.corpus, Path(folder), flags.vocab_size, flags.runs)
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{line}\n")


def measure(corpus: Path, folder: Path, vocab_size: int, runs: int) -> list[dict[str, Any]]:
    """Times both sides `runs` times, in turn, and returns the rows."""
    files = find_files([corpus])
    texts = [document.text for file in files for document in read_documents(file)]
    tokenizer = Tokenizer.train_bpe(texts, vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours_s, peer_s, ours_cpu_s, peer_cpu_s = [], [], [], []
    for run in range(runs + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        num_tokens = sum(map(len, encode_alone(peer, texts)))
        between, between_cpu = time.perf_counter(), time.process_time()
        dataset = make_dataset(folder / f"run-{run}", files, tokenizer)
        end, end_cpu = time.perf_counter(), time.process_time()
        if dataset.num_tokens != num_tokens + dataset.num_documents:
            raise AssertionError(f"{dataset.num_tokens} tokens, expected {num_tokens} and an end for each document")
        if run:  # the first warms up
            peer_s.append(between - start)
            ours_s.append(end - between)
            peer_cpu_s.append(between_cpu - start_cpu)
            ours_cpu_s.append(end_cpu - between_cpu)
    shared = {
        "corpus": corpus.name,
        "num_documents": dataset.num_documents,
        "num_tokens": dataset.num_tokens,
        "text_bytes": dataset.num_bytes,
        "runs": runs,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }
    speeds = {
        name: dataset.num_tokens / statistics.median(times)
        for name, times in (("tokenization.jaxscale", ours_s), ("tokenization.tokenizers", peer_s))
    }
    ratios = {
        name: statistics.median(alone / ours for alone, ours in zip(peer, own, strict=True))
        for name, peer, own in (
            ("tokenization.ratio", peer_s, ours_s),
            ("tokenization.ratio_of_processor_time", peer_cpu_s, ours_cpu_s),
        )
    }
    return [
        *({"name": name, "unit": "tokens/s", "value": round(speed), **shared} for name, speed in speeds.items()),
        *(
            {"name": name, "unit": "jaxscale / tokenizers", "value": round(ratio, 3), **shared}
            for name, ratio in ratios.items()
        ),
    ]


def encode_alone(peer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of all texts, by the library alone."""
    return [
        encoding.ids
        for start in range(0, len(texts), TEXTS_PER_CALL)
        for encoding in peer.encode_batch_fast(texts[start : start + TEXTS_PER_CALL], add_special_tokens=False)
    ]


def make_dataset(out: Path, files: list[Path], tokenizer: Tokenizer) -> TokenDataset:
    """A token dataset with packs, made in this process."""
    return write_dataset(out, files, tokenizer, tokenization(tokenizer, pack_lengths=[1024]), num_processes=1)


if __name__ == "__main__":
    main()
