"""Who belongs to whom among queries and documents, as rows of arrays, hard negatives included."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.errors import DataError, UsageError
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.negatives_lines import NegativesLine, read_negatives
from retrieval.towers.pairs import PairSource

Negatives = list[Int[np.ndarray, "_"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtScores:
    """A re-ranker's scores of what a query is trained on.

    Attributes:
      positives: of each pair's document.
      negatives: of each query's hard negatives, in their order.
    """

    positives: Float32[np.ndarray, "N"]
    negatives: list[Float32[np.ndarray, "_"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTable:
    """Who belongs to whom, as rows of arrays.

    Attributes:
      query_ids: the training queries, in the order of their rows.
      pairs: [N 2] rows (query, document), one for each relevant pair.
      known_positives: [Q M] every relevant document of each query, padded with `NO_DOCUMENT`.
      hard_negatives: per query the documents to choose hard negatives from; None where there are none.
      taught: a re-ranker's scores, where they are learned from.
    """

    query_ids: list[str]
    pairs: Int[np.ndarray, "N 2"]
    known_positives: Int[np.ndarray, "Q M"]
    hard_negatives: Negatives | None
    taught: TaughtScores | None = None

    def document_rows(self) -> list[int]:
        """The documents that a batch may hold, each once, rising."""
        return np.unique(np.concatenate([self.pairs[:, 1], *(self.hard_negatives or [])])).tolist()

    def choose_hard_negatives(self, query_rows: Int[np.ndarray, "B"], count: int, seed: tuple[int, ...]) -> np.ndarray:
        """`count` different hard negatives for each query of a batch, [B count]; a pure function of its arguments."""
        if self.hard_negatives is None or count == 0:
            return np.empty((len(query_rows), 0), np.int32)
        rng = np.random.default_rng(seed)
        return np.stack([rng.choice(self.hard_negatives[row], count, replace=False) for row in query_rows])

    def hard_negatives_of_epoch(
        self, pair_rows: Int[np.ndarray, "B"], count: int, epoch: int, seed: int
    ) -> Int[np.ndarray, "B count"]:
        """`count` different hard negatives for each pair of a batch; the others of its query are dropped in this epoch.

        A query has a turn for each of its pairs in every epoch. Its negatives are put in a random order and dealt out,
        `count` a turn; when fewer are left, all are put in another order. So none comes twice in an order.

        Args:
          pair_rows: rows of `pairs`.
          count: at most as many as the query with the fewest has.
          epoch: from 0.
          seed: any whole number.
        """
        if self.hard_negatives is None or count == 0:
            return np.empty((len(pair_rows), 0), np.int32)
        first_of_query, num_of_query = self._pairs_by_query
        chosen = []
        for pair in pair_rows:
            query = self.pairs[pair, 0]
            negatives, turn = self.hard_negatives[query], epoch * num_of_query[query] + pair - first_of_query[query]
            order, place = divmod(int(turn), len(negatives) // count)
            shuffled = Permutation(len(negatives), fold_seed(seed, "hard negatives", int(query), order))
            chosen.append(negatives[shuffled.at(np.arange(place * count, (place + 1) * count))])
        return np.stack(chosen)

    def taught_scores(
        self, pair_rows: Int[np.ndarray, "B"], negatives: Int[np.ndarray, "B C"]
    ) -> Float32[np.ndarray, "B P"]:
        """A re-ranker's scores of each pair's document and of its negatives, which are some of its query's.

        Raises:
          DataError: the table has none.
        """
        if self.taught is None or self.hard_negatives is None:
            raise DataError("the pairs have no re-ranker's scores")
        scores = [self.taught.positives[pair_rows][:, None]]
        of_negatives = [
            self.taught.negatives[query][np.searchsorted(self.hard_negatives[query], rows)]
            for query, rows in zip(self.pairs[pair_rows, 0], negatives, strict=True)
        ]
        return np.concatenate([*scores, np.stack(of_negatives)], axis=1)

    @functools.cached_property
    def _pairs_by_query(self) -> tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
        """The first pair of every query, and how many it has; they stand one after the other."""
        _, first, count = np.unique(self.pairs[:, 0], return_index=True, return_counts=True)
        return first, count


def make_table(
    source: PairSource, hard_negatives: Path | None, num_hard_negatives: int, *, needs_scores: bool = False
) -> PairTable:
    """Lays out the training split's pairs.

    Args:
      source: the texts and judgements.
      hard_negatives: a negatives folder, or a jsonl file of `{"query_id": ..., "doc_ids": [...]}`; or None.
      num_hard_negatives: how many each query must have there.
      needs_scores: whether a re-ranker's scores are learned from too.

    Raises:
      UsageError: scores are needed, and there are none.
      DataError: they are of another corpus, name a document that is not in it or that is relevant to its query, or a
        query has too few.
      VerificationError: the folder is damaged.
    """
    query_ids = list(source.qrels)
    positives = [[source.doc_rows[doc] for doc in source.qrels[query]] for query in query_ids]
    known = np.full((len(query_ids), max(map(len, positives))), NO_DOCUMENT, np.int32)
    for row, docs in enumerate(positives):
        known[row, : len(docs)] = docs
    pairs = np.array([(row, doc) for row, docs in enumerate(positives) for doc in docs], np.int32)
    negatives = taught = None
    if hard_negatives is not None:
        lines = read_negatives(hard_negatives, source)
        negatives = [_ids_of(query, lines, num_hard_negatives, hard_negatives, source) for query in query_ids]
        if needs_scores:
            taught = _taught(source, pairs, query_ids, negatives, lines, hard_negatives)
    return PairTable(query_ids=query_ids, pairs=pairs, known_positives=known, hard_negatives=negatives, taught=taught)


def _ids_of(
    query: str, by_query: dict[str, NegativesLine], count: int, path: Path, source: PairSource
) -> Int[np.ndarray, "_"]:
    """The rows of a query's hard negatives, rising."""
    docs = by_query[query].doc_ids if query in by_query else []
    rows = np.array(sorted({source.doc_rows[doc] for doc in docs}), np.int32)
    if len(rows) < count:
        raise DataError(
            f"{path}: query {query!r} has {len(rows)} different hard negatives, expected at least "
            f"num_hard_negatives={count}"
        )
    return rows


def _taught(
    source: PairSource,
    pairs: Int[np.ndarray, "N 2"],
    query_ids: list[str],
    negatives: Negatives,
    lines: dict[str, NegativesLine],
    path: Path,
) -> TaughtScores:
    """The re-ranker's scores as they lie beside the pairs and the hard negatives."""
    of_query = [lines[query].taught for query in query_ids]
    without = next((query for query in query_ids if not lines[query].reranker_scores), None)
    if without is not None:
        raise UsageError(
            f"contrastive.distill needs a re-ranker's scores, but the negatives of query {without!r} in {path} carry "
            "none; make them with `jaxscale rerank --negatives`, and name the folder that it writes"
        )
    missing = next((query_ids[q] for q, doc in pairs if source.docs[doc].id not in of_query[q]), None)
    if missing is not None:
        raise DataError(
            f"{path}: a relevant document of query {missing!r} has no re-ranker's score; the negatives were scored "
            "with other judgements: score them again with `jaxscale rerank --negatives`"
        )
    return TaughtScores(
        positives=np.array([of_query[query][source.docs[doc].id] for query, doc in pairs], np.float32),
        negatives=[
            np.array([scores[source.docs[row].id] for row in rows], np.float32)
            for scores, rows in zip(of_query, negatives, strict=True)
        ],
    )
