"""kill -9 at every failpoint of an index build: the index is the old or the new one, whole, and can be made again."""

import pytest

from jaxscale.errors import DataError
from retrieval.index.bm25_folder import open_bm25
from retrieval.index.folder import open_index
from tests.jaxscale.store import faults
from tests.retrieval.small_vectors import unit_rows, write_vectors
from tests.retrieval.tiny_retriever import write_corpus
from tests.retrieval.writers import bm25_small, index_small

COMMIT = [
    "commit.draft_opened",
    "commit.before_fsync",
    "commit.after_fsync",
    "commit.before_manifest",
    "commit.manifest_written",
    "commit.before_rename",
    "commit.after_rename",
    "commit.acknowledged",
]
FAISS = ["index.built", "index.written", "arrays.before_write", "arrays.after_write", *COMMIT]
BM25 = ["lexical_index.built", *COMMIT]


def tiered(names, quick):
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


def check_recovery(path, generation_of, rebuild):
    last = max(map(int, faults.acknowledged(path.with_name("acknowledged"))), default=0)
    found = generation_of(path)
    if found < last:
        faults.COUNTS["lost"] += 1
    assert last <= found <= 2
    rebuild(3)
    assert generation_of(path) == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["acknowledged", "i"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("vectors") / "v", unit_rows(0, 700, 8)).path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c", num_docs=20).path


def faiss_generation(path):
    try:
        opened = open_index(path, check="full")
    except DataError:
        return 0
    assert opened.index.search(unit_rows(1, 1, 8), 5).rows.shape == (1, 5)
    return opened.description.recall.num_queries


def bm25_generation(path):
    try:
        opened = open_bm25(path, check="full")
    except DataError:
        return 0
    assert opened.bm25.search(["alpha"], 5).rows.shape == (1, 5)
    return int(opened.description.config.k1)


@pytest.mark.parametrize("failpoint", tiered(FAISS, {"index.written", "commit.after_rename"}))
def test_a_killed_build_and_a_killed_replacement(tmp_path, vectors, failpoint):
    faults.run_until_killed(index_small, vectors, tmp_path / "i", 1, failpoint=failpoint)
    assert faiss_generation(tmp_path / "i") in (0, 1)
    index_small(vectors, tmp_path / "i", 1)
    faults.run_until_killed(index_small, vectors, tmp_path / "i", 2, failpoint=failpoint)
    check_recovery(
        tmp_path / "i", faiss_generation, lambda generation: index_small(vectors, tmp_path / "i", generation)
    )


@pytest.mark.parametrize("failpoint", tiered(BM25, {"lexical_index.built"}))
def test_a_killed_bm25_build_and_a_killed_replacement(tmp_path, corpus, failpoint):
    faults.run_until_killed(bm25_small, corpus, tmp_path / "i", 1, failpoint=failpoint)
    assert bm25_generation(tmp_path / "i") in (0, 1)
    bm25_small(corpus, tmp_path / "i", 1)
    faults.run_until_killed(bm25_small, corpus, tmp_path / "i", 2, failpoint=failpoint)
    check_recovery(tmp_path / "i", bm25_generation, lambda number: bm25_small(corpus, tmp_path / "i", number))
