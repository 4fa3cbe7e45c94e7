"""Writers of vectors and indexes that tests kill: functions of a module, so that a process can be started for each."""

import time

import numpy as np

from jaxscale.mesh import mesh_from_text
from retrieval.embed import embed_described
from retrieval.encode import EncodedTexts
from retrieval.formats.beir import BeirFolder
from retrieval.index.bm25_folder import build_bm25
from retrieval.index.build import BuildOptions, build_index
from retrieval.index.parameters import IndexRequest
from retrieval.search.bm25 import BM25Config
from retrieval.vectors import open_vectors
from tests.jaxscale.store.faults import mark_acknowledged
from tests.retrieval.small_vectors import describe, small_docs

NUM_DOCS, NUM_DIMS, SHARD_SIZE = 23, 8, 5


def fake_encode(texts):
    """Vectors that depend on a text and on those beside it, as those of a real batch may."""
    lengths = np.array([len(text) for text in texts], np.float32)
    vectors = np.sin(np.outer(lengths + lengths.sum(), np.arange(1, NUM_DIMS + 1))).astype(np.float32)
    return EncodedTexts(vectors=vectors, num_truncated=int((lengths > 30).sum()))


def description():
    return describe(small_docs(NUM_DOCS), NUM_DIMS, SHARD_SIZE)


def embed_small(out, pause_s=0.0):
    """Embeds the small documents; with a pause in every shard, a kill at a random time hits it."""

    def encode(texts):
        time.sleep(pause_s)
        return fake_encode(texts)

    embed_described(lambda: small_docs(NUM_DOCS), out, description(), encode)


def index_small(vectors, out, generation):
    """Builds an index whose number of sampled queries tells which generation it is; replaces one that is there."""
    build_index(
        open_vectors(vectors),
        out,
        IndexRequest(kind="ivf_pq", nlist=4, num_subvectors=4, num_bits=4),
        mesh_from_text("data=1@0"),
        options=BuildOptions(num_recall_queries=generation),
        replace=True,
    )
    mark_acknowledged(out.with_name("acknowledged"), str(generation))


def bm25_small(corpus, out, generation):
    """Builds a BM25 index whose k1 tells which generation it is; replaces one that is there."""
    build_bm25(BeirFolder.open(corpus), out, BM25Config(k1=float(generation)), replace=True)
    mark_acknowledged(out.with_name("acknowledged"), str(generation))
