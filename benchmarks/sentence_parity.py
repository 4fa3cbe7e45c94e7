"""Retrievers as sentence-transformers folders: its vectors, ours, and ours after the folder is read back.

    python -m benchmarks.sentence_parity --peers .venv-peers/bin/python

Retrievers with random weights, of every layout and way of pooling that `jaxscale export sentence-transformers` writes.
Prints the lowest cosine between the vectors of one text by both libraries; ends with 1 where one is below .9999, where
the folder that is read back gives other vectors than the retriever, or where a text alone and in a batch differ.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import bert_config, decoder_config, gpt_config
from jaxscale.nn.headless import headless
from jaxscale.nn.text import closed_by_end
from retrieval.encode import encode_texts
from retrieval.towers.encoder import SIDES, Encoder, EncoderConfig, TowerPair, init_towers
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import LoadedTowers, join_towers
from retrieval.towers.sentence_transformers_folder import export_tower

PEER = Path(__file__).with_name("sentence_parity_peer.py")
LOWEST_COSINE = 0.9999
WORDS = (
    "the",
    "sea",
    "was",
    "calm",
    "that",
    "morning",
    "and",
    "boats",
    "went",
    "out",
    "one",
    "after",
    "other",
    "north",
)
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, size=1 + 3 * i)) for i in range(12)] + ["Ünïcode, càfé!", "a"]

BERT = bert_config(num_layers=2, d_model=32, num_heads=4, d_ff=64, vocab_size=300, max_positions=24, dropout_rate=0.1)
LLAMA = decoder_config(
    num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=300, max_positions=24, tied_output=False
)
GPT2 = gpt_config(num_layers=2, d_model=32, num_heads=4, vocab_size=300, max_positions=24)


def retriever(transformer: TransformerConfig, *, shared: bool = True, score: str = "cosine", **fields: Any) -> Any:
    """Towers with random weights."""
    is_bert = transformer.type_vocab_size > 0
    tokenizer = Tokenizer.train_wordpiece(TEXTS, 200) if is_bert else Tokenizer.train_bpe(TEXTS, 300)
    common: dict[str, Any] = {"pooling": "last", "projection_dim": None, "max_length": 24}
    config = EncoderConfig(
        transformer=transformer, normalize=score == "cosine", prefix="passage: ", **(common | fields)
    )
    query = dataclasses.replace(config, prefix="query: ")
    pair = TowerPair(query=query, document=config, shared=shared, score="cosine" if score == "cosine" else "dot")
    params = jax.jit(lambda: init_towers(pair, jax.random.key(1)))()
    # Far from the start, so that every norm, bias and table shows in the vectors.
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.05 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape),
        params,
    )
    closed = tokenizer if is_bert else closed_by_end(tokenizer, "the benchmark")
    encoders = [Encoder(config=pair.config(side), params=pair.params(params, side), tokenizer=closed) for side in SIDES]
    return join_towers(query=encoders[0], document=encoders[1], shared=shared, score=pair.score)


def retrievers() -> dict[str, LoadedTowers]:
    """By name."""
    qwen2 = dataclasses.replace(LLAMA, qkv_bias=True)
    return {
        "bert-mean": retriever(BERT, pooling="mean"),
        "bert-cls-dot": retriever(BERT, pooling="cls", score="dot"),
        "bert-projection": retriever(BERT, pooling="mean", projection_dim=12),
        "llama-last": retriever(headless(LLAMA)),
        "llama-last-projection": retriever(headless(LLAMA), projection_dim=12),
        "llama-both-ways-mean": retriever(headless(LLAMA, both_ways=True), pooling="mean"),
        "qwen2-last": retriever(headless(qwen2)),
        "gpt2-last": retriever(headless(GPT2)),
        "bert-apart": retriever(BERT, pooling="mean", shared=False),
    }


def vectors_of(towers: LoadedTowers) -> dict[str, np.ndarray]:
    """Ours, by side."""
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    return {side: encode_texts(towers.encoder(side), TEXTS, mesh).vectors for side in SIDES}


def lowest_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Between the vectors of one text."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / lengths).min())


def row_of(name: str, towers: LoadedTowers, folders: dict[Path, tuple[str, ...]], made: Path) -> dict[str, Any]:
    """What both libraries make of one retriever's folders."""
    ours = vectors_of(towers)
    cosines, differences, alone, back = [], [], [], []
    for folder, sides in folders.items():
        theirs = np.load(made / f"{folder.name}.npz")
        again = vectors_of(load_towers(folder))
        cosines += [lowest_cosine(ours[side], theirs[side]) for side in sides]
        differences += [float(np.abs(ours[side] - theirs[side]).max()) for side in sides]
        back += [float(np.abs(ours[side] - again[side]).max()) for side in sides]
        alone.append(lowest_cosine(theirs["alone"], theirs[sides[0]]))
    return {
        "name": f"sentence_parity.{name}",
        "unit": "lowest cosine",
        "value": min(cosines),
        "max_difference": max(differences),
        "read_back_max_difference": max(back),
        "alone_and_in_batch": min(alone),
        "holds": min(*cosines, *alone) >= LOWEST_COSINE and max(back) == 0.0,
        "machine": platform.machine(),
    }


def main() -> int:
    """Prints a row for each retriever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment of locks/peers.txt")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root, towers, folders = Path(scratch), retrievers(), {}
        for name, pair in towers.items():
            folders[name] = {root / name: SIDES} if pair.shared else {root / f"{name}-{s}": (s,) for s in SIDES}
            for folder, sides in folders[name].items():
                export_tower(pair, folder, side=None if pair.shared else sides[0])
        (root / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
        written = [folder for of_name in folders.values() for folder in of_name]
        subprocess.run([flags.peers, PEER, root / "texts.json", root, *written], check=True)
        for name, pair in towers.items():
            rows.append(row_of(name, pair, folders[name], root))
            print(json.dumps(rows[-1]), flush=True)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        with flags.out.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
