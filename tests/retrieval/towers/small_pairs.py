"""A small BEIR folder of made-up words, where a query is a few words of its passage, and the tiny job on it."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.two_tower import two_tower_tiny
from retrieval.formats.beir import write_beir
from retrieval.records import Doc, Query
from retrieval.towers.job import DualTowerJob

NUM_DOCS = 96


def made_up_records(num_docs=NUM_DOCS):
    """Passages of ten words, two queries of four of them each; every eighth passage's queries are dev's."""
    rng = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstz" for v in "aeiou"]
    words = ["".join(rng.choices(syllables, k=3)) for _ in range(100)]
    docs, queries, qrels = [], [], {"train": {}, "dev": {}}
    for row in range(num_docs):
        of_doc = rng.sample(words, 10)
        docs.append(Doc(f"d{row}", f"title{row}" if row % 2 else "", " ".join(of_doc)))
        for number in range(2):
            query = Query(f"q{row}-{number}", " ".join(rng.sample(of_doc, 4)))
            queries.append(query)
            qrels["dev" if row % 8 == 0 else "train"][query.id] = {f"d{row}": 1}
    # A query with two known documents, and a judged document that is not relevant.
    qrels["train"]["q1-0"] = {"d1": 1, "d2": 2, "d3": 0}
    return docs, queries, qrels


def write_pairs(folder: Path) -> Path:
    """Writes them."""
    docs, queries, qrels = made_up_records()
    write_beir(folder, docs, queries, qrels)
    return folder


def tiny_job(folder: Path, **changes) -> DualTowerJob:
    """`two_tower_tiny` on a folder; `changes` are fields by the name of their part, e.g. `data={"split": "dev"}`."""
    job = two_tower_tiny()
    changes = {"data": {}, "operation": {}} | changes
    changes["data"] = {"folder": str(folder)} | changes["data"]
    changes["operation"] = {"compile_cache": "off"} | changes["operation"]
    parts = {part: dataclasses.replace(getattr(job, part), **fields) for part, fields in changes.items()}
    return dataclasses.replace(job, **parts)


def random_params(init: Callable[[jax.Array], Any], seed: int = 0) -> Any:
    """Host parameters of the shapes that `init` makes, drawn without compiling it."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype), shapes)
