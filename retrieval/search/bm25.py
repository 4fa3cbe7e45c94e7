"""BM25 over passages, scored by bm25s: building, searching, and the bytes of its arrays and terms.

score(q, d) = sum over the terms t of q of idf(t) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|)), in the form that
Lucene computes. Terms are numbered in sorted order, so that one corpus gives one index, byte for byte.
Reference: Kamphuis et al., Which BM25 Do You Mean?, ECIR 2020; Lù, BM25S, 2024.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from jaxtyping import Float32

from jaxscale.errors import DataError, UsageError
from retrieval.search.analyser import Analyser, AnalyserConfig
from retrieval.search.topk import TopK, best_of_all, require_positive_k

# Anserini's for passages, https://github.com/castorini/anserini.
DEFAULT_K1 = 0.9
DEFAULT_B = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25Config:
    """BM25's two parameters and its analyser.

    Attributes:
      k1: how soon more occurrences of a term stop counting, at least 0.
      b: how much a long document is held back, 0 to 1.
      analyser: how text becomes terms.
    """

    k1: float = DEFAULT_K1
    b: float = DEFAULT_B
    analyser: AnalyserConfig = dataclasses.field(default_factory=AnalyserConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < math.inf:
            raise UsageError(f"k1={self.k1} must be a finite number of at least 0; 0.9 suits passages")
        if not 0 <= self.b <= 1:
            raise UsageError(f"b={self.b} must be between 0 and 1; 0.4 suits passages")


class BM25:
    """A searchable BM25 index; `build` makes one, `load_arrays` reads one."""

    def __init__(self, config: BM25Config, scorer: Any) -> None:
        """Wraps a bm25s scorer whose terms were made by `config.analyser`."""
        self.config = config
        self.analyser = Analyser(config.analyser)
        self._scorer = scorer

    @classmethod
    def build(cls, passages: Iterable[str], config: BM25Config | None = None) -> "BM25":
        """Indexes passages; row i of the index is passage i.

        Args:
          passages: the texts, read once.
          config: parameters and analyser; the defaults when None.

        Raises:
          DataError: not one passage has a term.
        """
        config = BM25Config() if config is None else config
        terms_of = Analyser(config.analyser).terms
        documents = [terms_of(passage) for passage in passages]
        vocabulary = {term: number for number, term in enumerate(sorted({t for d in documents for t in d}))}
        if not vocabulary:
            raise DataError(f"BM25 needs at least one passage with a word in it; got {len(documents)} without any")
        numbered = [[vocabulary[term] for term in document] for document in documents]
        scorer = bm25s.BM25(k1=config.k1, b=config.b, method="lucene")
        # bm25s sets its logger to DEBUG when it is imported; let the program's own level hold for it again.
        logging.getLogger("bm25s").setLevel(logging.NOTSET)
        scorer.index((numbered, vocabulary), create_empty_token=False, show_progress=False)
        return cls(config, scorer)

    @property
    def num_rows(self) -> int:
        """How many passages there are (N)."""
        return int(self._scorer.scores["num_docs"])

    @property
    def num_terms(self) -> int:
        """How many different terms the passages have."""
        return len(self._scorer.vocab_dict)

    def scores(self, query: str) -> Float32[np.ndarray, "N"]:
        """Every passage's score for one query; 0 where they share no term."""
        known = self._scorer.get_tokens_ids(self.analyser.terms(query))
        if not known:
            return np.zeros(self.num_rows, np.float32)
        return np.asarray(self._scorer.get_scores_from_ids(known), np.float32)

    def search(self, queries: Sequence[str], k: int) -> TopK:
        """The `min(k, N)` best passages of each query; inside a tie the lowest row comes first.

        A passage that shares no term with the query scores 0 and comes after all others.

        Args:
          queries: the queries' texts.
          k: how many passages, at least 1.

        Raises:
          UsageError: `k` is below 1.
        """
        require_positive_k(k)
        num_hits = min(k, self.num_rows)
        rows = np.empty((len(queries), num_hits), np.int64)
        scores = np.empty((len(queries), num_hits), np.float32)
        for i, query in enumerate(queries):
            every = self.scores(query)
            rows[i] = best_of_all(every, num_hits)
            scores[i] = every[rows[i]]
        return TopK(rows=rows, scores=scores)

    def save_arrays(self, directory: Path) -> None:
        """Writes bm25s's own files (npy without pickle, JSON) into a directory; no corpus among them."""
        self._scorer.save(directory, allow_pickle=False, show_progress=False)

    @classmethod
    def load_arrays(cls, directory: Path, config: BM25Config) -> "BM25":
        """Reads what `save_arrays` wrote; `config` must be the one it was built with."""
        return cls(config, bm25s.BM25.load(directory, allow_pickle=False, load_corpus=False, show_progress=False))
