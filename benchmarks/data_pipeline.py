"""The data pipeline's speed in one process: batches of packed and shuffled rows out of two mixed, mapped datasets.

Command: python benchmarks/data_pipeline.py --out benchmarks/results/data_pipeline.jsonl

One JSON row per figure: the median, the slowest and the fastest batch, and the median per second of the processor,
which other programs disturb less. The datasets are random ids in documents of log-normal lengths, committed as any;
they are read from the page cache. A second row is a plain loop over the same rows' pieces, in the same run: what they
cost when nothing is done in bulk.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.data.mixture import Mixture
from jaxscale.data.text_data import TextData
from jaxscale.data.token_dataset import TokenDataset, TokenShard
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.data.tokenizer import Tokenizer

VOCAB_SIZE = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-documents", type=int, default=40_000, help="of each of the two datasets")
    parser.add_argument("--num-files", type=int, default=8, help="and so shards, of each dataset")
    parser.add_argument("--median-words", type=float, default=150.0, help="of a document")
    parser.add_argument("--sequence-lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tokens-per-batch", type=int, default=2**19)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="bench-data-") as folder:
        data = TextData(datasets=tuple(str(make(Path(folder), name, flags).path) for name in ("a", "b")))
        rows = [row for length in flags.sequence_lengths for row in measure(data, length, flags)]
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{line}\n")


def make(folder: Path, name: str, flags: argparse.Namespace) -> TokenDataset:
    """A dataset of random documents."""
    draw = np.random.default_rng(list(name.encode()))
    tokenizer = Tokenizer.train_bpe(["a b c d e f g h i j"] * 2, VOCAB_SIZE)
    files = []
    for number in range(flags.num_files):
        file = folder / f"{name}-{number}.jsonl"
        lengths = np.exp(draw.normal(np.log(flags.median_words), 1.0, flags.num_documents // flags.num_files))
        texts = [" ".join("abcdefghij"[d] for d in draw.integers(0, 10, max(int(n), 1))) for n in lengths]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files.append(file)
    how = tokenization(tokenizer, pack_lengths=flags.sequence_lengths)
    return write_dataset(folder / name, files, tokenizer, how)


def measure(data: TextData, length: int, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows for one length."""
    datasets = data.open()
    num_rows = flags.tokens_per_batch // length
    mixture = data.mixture(datasets, length, seed=0)
    shared = {
        "sequence_length": length,
        "rows_per_batch": num_rows,
        "batches": flags.batches,
        "dataset_tokens": sum(dataset.num_tokens for dataset in datasets),
        "tokens_per_document": round(datasets[0].num_tokens / datasets[0].num_documents),
        "shards": sum(len(dataset.shards) for dataset in datasets),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    speeds = time_batches(lambda first: mixture.rows(first, num_rows)["segments"], num_rows, flags.batches)
    opened = [[OpenShard(shard, length) for shard in dataset.shards] for dataset in datasets]
    plain = time_batches(lambda first: plain_rows(mixture, opened, length, first, num_rows), num_rows, 10)
    return [
        {
            "name": name,
            "unit": "tokens/s",
            "value": round(statistics.median(speed for speed, _ in found)),
            "slowest": round(min(speed for speed, _ in found)),
            "fastest": round(max(speed for speed, _ in found)),
            "per_cpu_s": round(statistics.median(speed for _, speed in found)),
            **shared,
        }
        for name, found in (("data_pipeline.jaxscale", speeds), ("data_pipeline.plain_loop", plain))
    ]


def time_batches(
    make_segments: Callable[[int], np.ndarray], num_rows: int, num_batches: int
) -> list[tuple[float, float]]:
    """Real tokens, without padding, a second and a processor's second, of each batch; two before them warm up."""
    speeds = []
    for number in range(num_batches + 2):
        start, start_cpu = time.perf_counter(), time.process_time()
        segments = make_segments(number * num_rows)
        elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        num_tokens = np.count_nonzero(segments)
        speeds.append((num_tokens / elapsed_s, num_tokens / cpu_s))
    return speeds[2:]


class OpenShard:
    """A shard's arrays, mapped once, as plain views."""

    def __init__(self, shard: TokenShard, length: int) -> None:
        packs = shard.packs(length)
        self.tokens, self.offsets = np.asarray(shard.tokens), np.asarray(shard.offsets)
        self.row_ends, self.starts, self.lengths = map(np.asarray, (packs.row_ends, packs.starts, packs.lengths))


def plain_rows(mixture: Mixture, opened: list[list[OpenShard]], length: int, first: int, num: int) -> np.ndarray:
    """The segments of the same rows, and all their other leaves, piece by piece."""
    leaves = {name: np.zeros((num, length), np.int32) for name in ("tokens", "segments", "positions")}
    leaves["targets"] = np.full((num, length), -1, np.int32)
    sources, places = mixture.places(np.arange(first, first + num))
    for row, (source, place) in enumerate(zip(sources.tolist(), places.tolist(), strict=True)):
        for shard in opened[source]:
            if place < len(shard.row_ends):
                break
            place -= len(shard.row_ends)
        column = 0
        begin = int(shard.row_ends[place - 1]) if place else 0
        for segment, piece in enumerate(range(begin, int(shard.row_ends[place])), 1):
            start, size = int(shard.starts[piece]), int(shard.lengths[piece])
            end, stop = column + size, start + size
            is_last = shard.offsets[np.searchsorted(shard.offsets, np.uint64(stop))] == stop
            leaves["tokens"][row, column:end] = shard.tokens[start:stop]
            leaves["targets"][row, column : end - 1] = shard.tokens[start + 1 : stop]
            leaves["targets"][row, end - 1] = -1 if is_last else shard.tokens[stop]
            leaves["segments"][row, column:end] = segment
            leaves["positions"][row, column:end] = np.arange(size)
            column = end
    return leaves["segments"]


if __name__ == "__main__":
    main()
