import logging
import math

import numpy as np
import pytest

from jaxscale.errors import DataError, MachineError, UsageError
from retrieval.search.analyser import Analyser, AnalyserConfig
from retrieval.search.bm25 import BM25, BM25Config

PASSAGES = [
    "The wings of a plane lift it",
    "A plane has two wings, and wings bend",
    "Fish swim",
    "",
    "Fish swim",
    "planes",
]


def reference_scores(query, passages, k1, b):
    """BM25 as Lucene computes it, term by term."""
    terms_of = Analyser(AnalyserConfig()).terms
    documents = [terms_of(p) for p in passages]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in terms_of(query):
            frequency, with_term = document.count(term), sum(term in d for d in documents)
            idf = math.log(1 + (len(documents) - with_term + 0.5) / (with_term + 0.5))
            score += idf * frequency / (frequency + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
@pytest.mark.parametrize("query", ["wings", "the planes' wings", "fish fish plane"])
def test_scores_are_bm25(query, k1, b):
    index = BM25.build(PASSAGES, BM25Config(k1=k1, b=b))
    np.testing.assert_allclose(index.scores(query), reference_scores(query, PASSAGES, k1, b), rtol=1e-5)


def test_ties_and_passages_without_a_common_term_come_in_the_order_of_rows():
    top = BM25.build(PASSAGES).search(["fish", "unheard of", ""], 10)
    assert top.rows.tolist() == [[2, 4, 0, 1, 3, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert top.scores[0, 2] == top.scores[1, 0] == 0


def test_the_same_bytes_in_every_build(tmp_path):
    for name, passages in (("a", PASSAGES), ("b", iter(PASSAGES))):
        BM25.build(passages).save_arrays(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "vocab.index.json" in files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    loaded = BM25.load_arrays(tmp_path / "a", BM25Config())
    built = BM25.build(PASSAGES)
    np.testing.assert_array_equal(loaded.search(["wings lift"], 3).rows, built.search(["wings lift"], 3).rows)
    assert (loaded.num_rows, loaded.num_terms) == (6, built.num_terms)


def test_the_analyser_is_frozen_in_its_fingerprint():
    analyser = Analyser(AnalyserConfig())
    assert analyser.fingerprint == Analyser(AnalyserConfig()).fingerprint
    others = [AnalyserConfig(stemmer="porter"), AnalyserConfig(stemmer=None), AnalyserConfig(stop_words=())]
    assert len({analyser.fingerprint, *(Analyser(config).fingerprint for config in others)}) == 4
    with pytest.raises(MachineError, match="another release of the 'english' stemmer"):
        analyser.require_fingerprint("0" * 64, "the index")


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="got 2 without any"):
        BM25.build(["", "the of"])
    with pytest.raises(UsageError, match="k1=-1"):
        BM25Config(k1=-1)
    with pytest.raises(UsageError, match="b=2"):
        BM25Config(b=2)
    with pytest.raises(UsageError, match="stemmer='klingon' is unknown"):
        AnalyserConfig(stemmer="klingon")
    with pytest.raises(UsageError, match="k=0"):
        BM25.build(PASSAGES).search(["fish"], 0)


def test_building_says_nothing_to_a_program_that_logs(caplog):
    logging.getLogger("bm25s").setLevel(logging.DEBUG)  # as importing bm25s leaves it
    BM25.build(PASSAGES)
    assert caplog.records == []
