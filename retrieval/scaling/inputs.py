"""What the runs of a family are trained on and start from: nested amounts of pairs, and weights of every size."""

import hashlib
from pathlib import Path
from typing import Any

import jax

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn.keys import named_key
from jaxscale.store import commit
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.formats.trec import Qrels
from retrieval.scaling.family import Size, TowerFamily, split_name
from retrieval.towers.encoder import SIDES, Encoder, init_towers
from retrieval.towers.pairs import PairSource, read_source
from retrieval.towers.retriever_folder import join_towers, save_retriever
from retrieval.towers.start import planned_towers


def claim_study(out: Path, family: TowerFamily, source: PairSource) -> tuple[BeirFolder, dict[str, Any]]:
    """Makes a folder the study of a family by writing its data, or checks that it is that study's.

    Args:
      out: the study's folder.
      family: which one.
      source: the records of the folder that the family names.

    Returns:
      The data, and the identity of the study.

    Raises:
      DataError: there are fewer pairs than the largest amount.
      UsageError: the folder belongs to another study, or to something else.
    """
    identity = family.identity(source.sha256)
    data = out / "data"
    if commit.is_committed(data):
        folder = BeirFolder.open(data, check="full")
        found = commit.open_committed(data).manifest.config
        if found != identity:
            names = sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name))
            raise UsageError(
                f"{out} holds a study that differs in {', '.join(names)}; choose another --out, or remove it first"
            )
        return folder, identity
    _check_is_free(out)
    splits = {split_name(number): _first_pairs(source.qrels, number) for number in family.num_pairs}
    dev_split = family.job.data.dev_split
    if dev_split in splits:
        raise UsageError(f"job.data.dev_split={dev_split!r} is the name of an amount of pairs; rename the split")
    queries = [source.queries[query_id] for query_id in sorted(source.queries)]
    qrels = splits | {dev_split: source.dev_qrels}
    return write_beir(data, source.docs, queries, qrels, config=identity), identity


def make_starts(out: Path, family: TowerFamily) -> dict[Size, Path]:
    """Draws the weights that each size starts from, where they are not there yet; returns where they are.

    Args:
      out: the study's folder, claimed.
      family: whose.
    """
    places = {size: out / "starts" / str(size) for size in family.sizes}
    missing = [size for size, place in places.items() if not commit.is_committed(place)]
    if not missing:
        return places
    largest = read_source(out / "data", split_name(family.num_pairs[-1]), family.job.data.dev_split)
    tokenizer = Tokenizer.train_wordpiece(largest.training_texts(), family.transformer(missing[0]).vocab_size)
    for size in missing:
        pair = planned_towers(family.towers(size), family.job.data.max_lengths)
        drawn = jax.device_get(init_towers(pair, named_key(jax.random.key(family.job.training.seed), "params")))
        query, document = (
            Encoder(config=pair.config(side), params=pair.params(drawn, side), tokenizer=tokenizer) for side in SIDES
        )
        save_retriever(places[size], join_towers(query=query, document=document, shared=pair.shared, score=pair.score))
    return places


def _check_is_free(out: Path) -> None:
    others = [p.name for p in out.iterdir() if commit.leftover_of(p.name) != "data"] if out.is_dir() else []
    if others:
        raise UsageError(
            f"--out {out} is not empty and no scaling study ({', '.join(sorted(others)[:3])}); name a new folder"
        )


def _first_pairs(qrels: Qrels, num_pairs: int) -> Qrels:
    """The first so many pairs in the order of their hashes, so that every amount holds the lesser ones."""
    pairs = [(query_id, doc_id) for query_id, judged in qrels.items() for doc_id in judged]
    if len(pairs) < num_pairs:
        raise DataError(
            f"num_pairs: {num_pairs} pairs are asked for, the split has {len(pairs)}; end the amounts there"
        )
    pairs.sort(key=lambda pair: hashlib.sha256("\t".join(pair).encode()).digest())
    kept: Qrels = {}
    for query_id, doc_id in pairs[:num_pairs]:
        kept.setdefault(query_id, {})[doc_id] = qrels[query_id][doc_id]
    return kept
