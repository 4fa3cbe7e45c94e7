"""A teacher of two layers with random weights, its documents' vectors and index, and the tiny job on them."""

import dataclasses
from pathlib import Path

import jax

from configs.distill import distill_query_tower_tiny
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import bert_config
from retrieval.embed import embed_corpus
from retrieval.formats.beir import BeirFolder
from retrieval.index.build import build_index
from retrieval.index.parameters import IndexRequest
from retrieval.towers.distillation.job import DistillationJob
from retrieval.towers.encoder import Encoder, EncoderConfig, init_encoder
from retrieval.towers.retriever_folder import LoadedTowers, join_towers, save_retriever
from tests.retrieval.towers.small_pairs import made_up_records, random_params, write_pairs

MESH = make_mesh(MeshSpec(), jax.devices()[:1])
TOKENIZER = Tokenizer.train_wordpiece([doc.passage for doc in made_up_records()[0]], 200)


def small_encoder(num_layers=2, d_model=32, seed=0, tokenizer=TOKENIZER, **fields) -> Encoder:
    """A BERT with random weights."""
    transformer = bert_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=2,
        d_ff=64,
        vocab_size=tokenizer.vocab_size,
        max_positions=48,
        dropout_rate=0.0,
    )
    given = {"pooling": "mean", "normalize": True, "projection_dim": None, "prefix": "", "max_length": 48} | fields
    config = EncoderConfig(transformer=transformer, **given)
    params = random_params(lambda key: init_encoder(config, key), seed)
    return Encoder(config=config, params=jax.tree_util.tree_map_with_path(_apart, params), tokenizer=tokenizer)


def _apart(path, leaf):
    """Weights that give other texts other vectors: what all have in common, biases and positions, is small."""
    name, table = path[-1].key, path[-2].key
    if name == "scale":
        return 1 + 0.1 * leaf
    return leaf * (4 if table == "token" else 0.1 if name in ("bias", "table") else 1)


def small_retriever(seed=0, score="cosine", **fields) -> LoadedTowers:
    """Shared towers of such an encoder."""
    encoder = small_encoder(seed=seed, normalize=score == "cosine", **fields)
    return join_towers(query=encoder, document=encoder, shared=True, score=score)


def write_home(home: Path) -> Path:
    """beir/, teacher/, vectors/ and index/ in a folder."""
    write_pairs(home / "beir")
    towers = small_retriever()
    save_retriever(home / "teacher", towers)
    vectors = embed_corpus(towers, BeirFolder.open(home / "beir"), home / "vectors", MESH)
    build_index(vectors, home / "index", IndexRequest(kind="flat"), MESH)
    return home


def small_job(home: Path, out: Path, **changes) -> DistillationJob:
    """`distill_query_tower_tiny` on such a folder; `changes` are fields by the name of their part."""
    job = distill_query_tower_tiny()
    given = {
        "teacher": {"retriever": str(home / "teacher"), "vectors": str(home / "vectors")},
        "data": {"folder": str(home / "beir"), "query_buckets": (16,)},
        # A cache for all jobs of the home: most steps of the tests are the same.
        "operation": {"compile_cache": str(home / "compiled"), "mesh": "data=1@0"},
    }
    for part in given.keys() | changes.keys():
        fields = given.get(part, {}) | changes.get(part, {})
        job = dataclasses.replace(job, **{part: dataclasses.replace(getattr(job, part), **fields)})
    return job.beside(out)
