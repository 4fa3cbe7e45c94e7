"""Hard negatives: which documents that score high for a query are kept as its negatives, and by which rule the rest go.

Reference: de Souza Moreira et al. 2024, NV-Retriever, https://arxiv.org/abs/2407.15831, section 3 (margins that depend
on the positive's score). Windows of ranks are those of ANCE (Xiong et al. 2020, https://arxiv.org/abs/2007.00808) and
RocketQA (Qu et al. 2020, https://arxiv.org/abs/2010.08191).
"""

import collections
import dataclasses
import math
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int, Int32, Int64

from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.errors import UsageError
from jaxscale.store.failpoints import failpoint
from retrieval.contract import Score
from retrieval.search.exact import ExactSearcher
from retrieval.search.topk import inner_products
from retrieval.towers.near_duplicates import LOWEST_JACCARD, duplicate_groups
from retrieval.towers.pairs import PairSource

# In the order in which they are asked: docs/formats/negatives.md.
RULES = ("skip_first", "positive", "duplicate", "max_score", "max_of_positive")
_KEPT = len(RULES)
# Queries searched at once, so that the hits of a large split need not be in memory together.
_QUERIES_AT_ONCE = 4096
_DRAWN_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mining:
    """Which documents become hard negatives; the rules are written down in docs/formats/negatives.md.

    Attributes:
      num_negatives: kept of each query.
      depth: documents looked at for each query, the best by exact search.
      skip_first: the best of them that are passed over.
      max_score: what scores above it is dropped; None for no such rule.
      max_of_positive: what scores at least this part of the lowest score p of the query's positives is dropped, in
        (0, 1], with the same distance from p where p is negative; None for no such rule. .95 is what NV-Retriever
        found best.
      duplicate_jaccard: what is a near-duplicate of a positive to this degree is dropped, in [0.5, 1]; see
        `retrieval.towers.near_duplicates`. None for no such rule.
      sampling: of what is left the best (`top`), or any (`uniform`).
      fill: whether queries with fewer get documents drawn out of the corpus.
      seed: of all that is drawn.
    """

    num_negatives: int = 8
    depth: int = 100
    skip_first: int = 0
    max_score: float | None = None
    max_of_positive: float | None = 0.95
    duplicate_jaccard: float | None = 0.8
    sampling: Literal["top", "uniform"] = "top"
    fill: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_negatives", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.skip_first < self.depth:
            raise UsageError(
                f"skip_first={self.skip_first} must be at least 0 and below depth={self.depth}, the documents looked at"
            )
        if self.max_score is not None and not math.isfinite(self.max_score):
            raise UsageError(f"max_score={self.max_score} must be a finite number, or None for no such rule")
        if self.max_of_positive is not None and not 0 < self.max_of_positive <= 1:
            raise UsageError(
                f"max_of_positive={self.max_of_positive} must be above 0 and at most 1, a part of the positive's "
                "score, or None for no such rule"
            )
        if self.duplicate_jaccard is not None and not LOWEST_JACCARD <= self.duplicate_jaccard <= 1:
            raise UsageError(
                f"duplicate_jaccard={self.duplicate_jaccard} must be between {LOWEST_JACCARD} and 1, as 0.8, or None"
            )

    def check_corpus(self, num_documents: int) -> None:
        """Refuses a corpus that has fewer documents than are to be looked at.

        Raises:
          UsageError: it has.
        """
        if self.depth > num_documents:
            raise UsageError(
                f"depth={self.depth} is more than the {num_documents} documents of the corpus; use at most that"
            )

    def check_scores(self, score: Score) -> None:
        """Refuses a `max_score` that no score can reach, or that all do.

        Raises:
          UsageError: it is no cosine, where the scores are.
        """
        highest = self.max_score
        if score == "cosine" and highest is not None and not -1 <= highest <= 1:
            raise UsageError(f"max_score={highest} must be between -1 and 1, as the scores are cosines")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negatives:
    """The negatives of one query, those found by the search first, best first.

    Attributes:
      query_id: the query.
      rows: the documents, by their rows in the corpus.
      scores: of each.
    """

    query_id: str
    rows: Int64[np.ndarray, "K"]
    scores: Float32[np.ndarray, "K"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mined:
    """The negatives of all training queries.

    Attributes:
      negatives: in the order of the split's judgements.
      counts: what was looked at, dropped by each rule, and kept, by the names in docs/formats/negatives.md.
    """

    negatives: list[Negatives]
    counts: dict[str, int]


def mine(
    source: PairSource,
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "N E"],
    mesh: Mesh,
    mining: Mining,
) -> Mined:
    """Searches the corpus for every training query and keeps what the rules leave.

    Args:
      source: the corpus and the judgements of its training split.
      queries: a vector for each query of `source.qrels`, in its order; an inner product compares it with a document's.
      documents: a vector for each document, in the corpus's order.
      mesh: its devices share the search.
      mining: the rules.

    Raises:
      UsageError: the corpus is smaller than `depth`.
      DataError: a vector is not finite.
    """
    mining.check_corpus(len(documents))
    searcher = ExactSearcher(documents, mesh)
    chooser = _Chooser(source, documents, mining)
    query_ids = list(source.qrels)
    negatives: list[Negatives] = []
    for start in range(0, len(query_ids), _QUERIES_AT_ONCE):
        block = slice(start, start + _QUERIES_AT_ONCE)
        found = searcher.search(queries[block], mining.depth)
        failpoint("mining.searched")
        negatives += map(chooser.of_query, query_ids[block], queries[block], found.rows, found.scores)
    return Mined(negatives=negatives, counts=chooser.all_counts())


class _Chooser:
    """Chooses query by query, and counts."""

    def __init__(self, source: PairSource, documents: Float32[np.ndarray, "N E"], mining: Mining) -> None:
        self._source, self._documents, self._mining = source, documents, mining
        # Without the rule every document is alone in its group.
        self._groups: Int32[np.ndarray, "N"] = np.arange(len(documents), dtype=np.int32)
        if mining.duplicate_jaccard is not None:
            self._groups = duplicate_groups((doc.passage for doc in source.docs), mining.duplicate_jaccard)
        self._counts: collections.Counter[str] = collections.Counter()

    def of_query(
        self,
        query_id: str,
        query: Float32[np.ndarray, "E"],
        rows: Int64[np.ndarray, "K"],
        scores: Float32[np.ndarray, "K"],
    ) -> Negatives:
        mining, counts = self._mining, self._counts
        positives = np.array([self._source.doc_rows[doc] for doc in self._source.qrels[query_id]], np.int64)
        lowest = inner_products(query, self._documents, positives).astype(np.float32).min()
        verdicts = first_refusals(rows, scores, positives, float(lowest), self._groups, mining)
        counts.update(RULES[verdict] for verdict in verdicts[verdicts < _KEPT])
        left = np.flatnonzero(verdicts == _KEPT)
        kept = left[_chosen(len(left), query_id, mining)]
        filled = np.empty(0, np.int64)
        if len(kept) < mining.num_negatives:
            counts["queries_short"] += 1
            if mining.fill:
                filled = self._drawn(query_id, positives, rows, mining.num_negatives - len(kept))
        drawn_scores = inner_products(query, self._documents, filled).astype(np.float32)
        all_rows = np.concatenate([rows[kept], filled])
        counts.update(queries=1, candidates=len(rows), negatives=len(all_rows), filled=len(filled))
        counts["queries_lacking"] += len(all_rows) < mining.num_negatives
        return Negatives(query_id=query_id, rows=all_rows, scores=np.concatenate([scores[kept], drawn_scores]))

    def all_counts(self) -> dict[str, int]:
        counts = self._counts
        names = ("queries", "candidates", "negatives", "filled", "queries_short", "queries_lacking")
        return {
            "documents": len(self._documents),
            **{name: counts[name] for name in names},
            **{f"dropped.{rule}": counts[rule] for rule in RULES},
        }

    def _drawn(
        self, query_id: str, positives: Int64[np.ndarray, "P"], looked_at: Int64[np.ndarray, "K"], count: int
    ) -> Int64[np.ndarray, "_"]:
        """Up to `count` documents, in a random order of the corpus: none looked at, no positive nor its duplicate."""
        num_documents = len(self._documents)
        order = Permutation(num_documents, fold_seed(self._mining.seed, "filled", query_id))
        drawn = np.empty(0, np.int64)
        for start in range(0, num_documents, _DRAWN_AT_ONCE):
            rows = order.at(np.arange(start, min(start + _DRAWN_AT_ONCE, num_documents)))
            refused = np.isin(rows, looked_at) | np.isin(self._groups[rows], self._groups[positives])
            drawn = np.concatenate([drawn, rows[~refused]])[:count]
            if len(drawn) == count:
                break
        return drawn


def first_refusals(
    rows: Int64[np.ndarray, "K"],
    scores: Float32[np.ndarray, "K"],
    positives: Int64[np.ndarray, "P"],
    lowest_positive: float,
    groups: Int[np.ndarray, "N"],
    mining: Mining,
) -> Int64[np.ndarray, "K"]:
    """The first rule that drops each candidate, as its place in `RULES`; one beyond the last where none does.

    Args:
      rows: the candidates, best first.
      scores: of each.
      positives: the query's known positives.
      lowest_positive: the lowest of their scores.
      groups: the group of near-duplicates of every document of the corpus.
      mining: the rules.

    >>> rows, scores = np.array([4, 0, 2, 1]), np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    >>> found = first_refusals(rows, scores, np.array([0]), 0.8, np.array([0, 1, 2, 3, 0]), Mining())
    >>> [RULES[place] if place < len(RULES) else "kept" for place in found]
    ['duplicate', 'positive', 'kept', 'kept']
    """
    never = np.zeros(len(rows), np.bool_)
    refused = {
        "skip_first": np.arange(len(rows)) < mining.skip_first,
        "positive": np.isin(rows, positives),
        "duplicate": np.isin(groups[rows], groups[positives]),
        "max_score": never if mining.max_score is None else scores.astype(np.float64) > mining.max_score,
        "max_of_positive": never
        if mining.max_of_positive is None
        else scores.astype(np.float64) >= lowest_positive - (1 - mining.max_of_positive) * abs(lowest_positive),
    }
    return np.argmax(np.stack([*(refused[rule] for rule in RULES), ~never]), axis=0)


def _chosen(num_left: int, query_id: str, mining: Mining) -> Int64[np.ndarray, "_"]:
    """The places of those that are kept among what the rules leave, rising."""
    if num_left <= mining.num_negatives or mining.sampling == "top":
        return np.arange(min(num_left, mining.num_negatives))
    order = Permutation(num_left, fold_seed(mining.seed, "chosen", query_id))
    return np.sort(order.at(np.arange(mining.num_negatives)))
