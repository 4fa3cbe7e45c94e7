"""A retriever of a few thousand weights and a small BEIR folder, for the tests of embedding and searching."""

import jax
import numpy as np

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.families import bert_config
from retrieval.formats.beir import write_beir
from retrieval.records import Doc, Query
from retrieval.towers.encoder import Encoder, EncoderConfig, init_encoder
from retrieval.towers.retriever_folder import join_towers, save_retriever

WORDS = [f"{start}{end}" for start in ("al", "be", "ga", "de", "ep", "ze") for end in ("pha", "ta", "mma")]
MAX_LENGTH = 24


def tiny_docs(num_docs, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Doc(
            f"d{i}", f"title {WORDS[i % len(WORDS)]}" if i % 3 else "", " ".join(rng.choice(WORDS, rng.integers(2, 40)))
        )
        for i in range(num_docs)
    ]


def tiny_queries(docs, num_queries):
    """Queries whose words are those of the document they are about; the first half is dev, the rest test."""
    queries = [Query(f"q{i}", " ".join(docs[i].text.split()[:4])) for i in range(num_queries)]
    half = num_queries // 2
    qrels = {
        "dev": {f"q{i}": {f"d{i}": 1} for i in range(half)},
        "test": {f"q{i}": {f"d{i}": 1} for i in range(half, num_queries)},
    }
    return queries, qrels


def write_corpus(path, num_docs=60, num_queries=12, seed=0):
    docs = tiny_docs(num_docs, seed)
    queries, qrels = tiny_queries(docs, num_queries)
    return write_beir(path, docs, queries, qrels)


def tiny_towers(seed=0, *, prefix="", score="cosine", normalize=True):
    tokenizer = Tokenizer.train_wordpiece([doc.passage for doc in tiny_docs(60)], 120)
    transformer = bert_config(
        num_layers=1,
        d_model=16,
        num_heads=2,
        d_ff=32,
        vocab_size=tokenizer.vocab_size,
        max_positions=32,
        dropout_rate=0.0,
    )
    config = EncoderConfig(
        transformer=transformer,
        pooling="mean",
        normalize=normalize,
        projection_dim=None,
        prefix=prefix,
        max_length=MAX_LENGTH,
    )
    encoder = Encoder(config=config, params=_random_params(config, seed), tokenizer=tokenizer)
    return join_towers(query=encoder, document=encoder, shared=True, score=score)


def _random_params(config, seed):
    """Weights by numpy: `init_encoder` would compile a program for each."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_encoder(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)


def write_retriever(path, seed=0, **settings):
    towers = tiny_towers(seed, **settings)
    save_retriever(path, towers)
    return towers
