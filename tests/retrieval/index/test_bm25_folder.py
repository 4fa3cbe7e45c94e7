import json

import numpy as np
import pytest

from jaxscale.errors import DataError, MachineError, UsageError, VerificationError
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder
from retrieval.index.bm25_folder import build_bm25, open_bm25
from retrieval.search.analyser import Analyser
from retrieval.search.bm25 import BM25, BM25Config
from tests.retrieval.tiny_retriever import write_corpus
from tests.shared_data import unpack_beir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c")


def test_what_is_written_is_read(corpus, tmp_path):
    config = BM25Config(k1=1.2, b=0.7)
    opened = build_bm25(corpus, tmp_path / "i", config)
    docs = list(corpus.docs())
    built = BM25.build([doc.passage for doc in docs], config).search(["alpha beta", "zeta"], 7)
    found = opened.bm25.search(["alpha beta", "zeta"], 7)
    np.testing.assert_array_equal(found.rows, built.rows)
    np.testing.assert_array_equal(found.scores, built.scores)
    assert opened.ids == [doc.id for doc in docs]
    assert opened.description.config == config
    assert opened.manifest.config == json.loads((tmp_path / "i" / "bm25.json").read_text())
    assert opened.manifest.config["config"]["analyser"]["stop_words"][:3] == ["a", "an", "and"]
    assert opened.verified
    assert build_bm25(corpus, tmp_path / "again", config).manifest.identity == opened.manifest.identity


@pytest.mark.parametrize("name", ["vocab.index.json", "indices.csc.index.npy", "bm25.json", "ids.json"])
def test_one_flipped_bit_is_found_and_its_file_named(corpus, tmp_path, name):
    build_bm25(corpus, tmp_path / "i")
    (file,) = (tmp_path / "i").rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=name):
        open_bm25(tmp_path / "i")


def test_another_stemmer_is_refused(corpus, tmp_path, monkeypatch):
    build_bm25(corpus, tmp_path / "i")
    monkeypatch.setattr(Analyser, "fingerprint", "f" * 64)
    with pytest.raises(MachineError, match="another release of the 'english' stemmer"):
        open_bm25(tmp_path / "i")


def test_one_that_is_there_is_replaced_only_when_asked(corpus, tmp_path):
    first = build_bm25(corpus, tmp_path / "i")
    with pytest.raises(UsageError, match="exists already"):
        build_bm25(corpus, tmp_path / "i", BM25Config(b=0))
    second = build_bm25(corpus, tmp_path / "i", BM25Config(b=0), replace=True)
    assert first.manifest.identity != second.manifest.identity == open_bm25(tmp_path / "i").manifest.identity


def test_another_format_is_named(corpus):
    with pytest.raises(DataError, match=r"holds jaxscale.beir, expected jaxscale.bm25"):
        open_bm25(corpus.path)


@pytest.mark.parametrize(
    ("name", "ndcg", "reciprocal_rank", "recall"),
    [("cranfield", 0.366, 0.513, 0.726), ("stackfaq", 0.730, 0.673, 0.999)],
)
def test_the_figures_of_public_collections(tmp_path, name, ndcg, reciprocal_rank, recall):
    corpus = BeirFolder.open(unpack_beir(name, tmp_path))
    opened = build_bm25(corpus, tmp_path / "i")
    qrels = corpus.qrels("test")
    queries = [query for query in corpus.queries() if query.id in qrels]
    found = opened.bm25.search([query.text for query in queries], 100)
    run = {
        query.id: {opened.ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
        for query, rows, scores in zip(queries, found.rows, found.scores, strict=True)
    }
    evaluation = evaluate(run, qrels, ["nDCG@10", "RR@10", "R@100"])
    measured = [evaluation.mean(measure) for measure in ("nDCG@10", "RR@10", "R@100")]
    np.testing.assert_allclose(measured, [ndcg, reciprocal_rank, recall], atol=0.0015)
