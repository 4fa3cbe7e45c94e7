"""Small committed sets of vectors for the tests of indexes and search, without an encoder."""

import numpy as np

from jaxscale.store import commit
from retrieval.contract import EncoderIdentity, found_space
from retrieval.records import Doc
from retrieval.vectors import (
    FORMAT,
    VERSION,
    CorpusHash,
    VectorsDescription,
    claim_draft,
    finish_draft,
    open_vectors,
    write_shard,
)


def contract(num_dims, name="a"):
    identities = tuple(
        EncoderIdentity(side=side, sha256=name * 64, prefix="", pooling="mean", max_length=32)
        for side in ("query", "document")
    )
    return found_space(num_dims=num_dims, normalized=True, score="cosine", encoders=identities)


def describe(docs, num_dims, shard_size, name="a"):
    corpus_hash = CorpusHash.of(docs)
    return VectorsDescription(
        contract=contract(num_dims, name),
        model=name * 64,
        corpus=corpus_hash.sha256,
        num_rows=corpus_hash.num_docs,
        shard_size=shard_size,
        compute_dtype="float32",
        mesh="data=1",
        jax_version="0",
    )


def small_docs(num_rows):
    return [Doc(f"doc{i}", f"title {i}", "word " * (i % 7) + f"number {i}") for i in range(num_rows)]


def unit_rows(seed, num_rows, num_dims):
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_dims)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered_rows(seed, num_rows, num_dims, num_clusters=32):
    """Unit vectors around a few centres, as documents' vectors are."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(seed, num_clusters, num_dims)
    rows = centres[rng.integers(0, num_clusters, num_rows)] + 0.08 * rng.normal(size=(num_rows, num_dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_vectors(path, rows, shard_size=1000, name="a"):
    """Commits rows as the vectors of `small_docs`, and opens them."""
    docs = small_docs(len(rows))
    description = describe(docs, rows.shape[1], shard_size, name)
    with commit.draft(path, format=FORMAT, version=VERSION, resumable=True) as draft:
        claim_draft(draft.path, description)
        for number in range(description.num_shards):
            part = slice(number * shard_size, (number + 1) * shard_size)
            ids = [doc.id for doc in docs[part]]
            write_shard(draft.path, number, ids=ids, vectors=rows[part], num_truncated=number)
        finish_draft(draft, description)
    return open_vectors(path)
