"""Who belongs to whom among queries and documents, as rows of arrays, hard negatives included."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxscale import typed_json
from jaxscale.data.lines import read_lines
from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.errors import DataError
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.negatives_folder import negatives_file, require_same_corpus
from retrieval.towers.pairs import PairSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTable:
    """Who belongs to whom, as rows of arrays.

    Attributes:
      query_ids: the training queries, in the order of their rows.
      pairs: [N 2] rows (query, document), one for each relevant pair.
      known_positives: [Q M] every relevant document of each query, padded with `NO_DOCUMENT`.
      hard_negatives: per query the documents to choose hard negatives from; None where there are none.
    """

    query_ids: list[str]
    pairs: Int[np.ndarray, "N 2"]
    known_positives: Int[np.ndarray, "Q M"]
    hard_negatives: list[Int[np.ndarray, "_"]] | None

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

    @functools.cached_property
    def _pairs_by_query(self) -> tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
        """The first pair of every query, and how many it has; they stand one after the other."""
        _, first, count = np.unique(self.pairs[:, 0], return_index=True, return_counts=True)
        return first, count


def make_table(source: PairSource, hard_negatives: Path | None, num_hard_negatives: int) -> PairTable:
    """Lays out the training split's pairs.

    Args:
      source: the texts and judgements.
      hard_negatives: a negatives folder, or a jsonl file of `{"query_id": ..., "doc_ids": [...]}`; or None.
      num_hard_negatives: how many each query must have there.

    Raises:
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
    negatives = None
    if hard_negatives is not None:
        by_query = _read_hard_negatives(hard_negatives, source)
        negatives = [_negatives_of(query, by_query, num_hard_negatives, hard_negatives) for query in query_ids]
    return PairTable(query_ids=query_ids, pairs=pairs, known_positives=known, hard_negatives=negatives)


@dataclasses.dataclass(frozen=True)
class _NegativesLine:
    """A line of a file of hard negatives."""

    query_id: str
    doc_ids: list[str]
    # Of the model that mined them; training asks for none.
    scores: tuple[float, ...] = typed_json.added(())


def _read_hard_negatives(path: Path, source: PairSource) -> dict[str, Int[np.ndarray, "_"]]:
    file = negatives_file(path)
    require_same_corpus(path, source)
    found: dict[str, Int[np.ndarray, "_"]] = {}
    for number, text in read_lines(file):
        where = f"{file}:{number}"
        try:
            line = typed_json.decode(_NegativesLine, json.loads(text), where)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from None
        if line.query_id in found:
            raise DataError(f"{where}: query {line.query_id!r} stands in the file twice")
        if line.query_id not in source.queries:
            raise DataError(f"{where}: query {line.query_id!r} is not a judged one; is the file of another corpus?")
        unknown = next((doc for doc in line.doc_ids if doc not in source.doc_rows), None)
        if unknown is not None:
            raise DataError(f"{where}: document {unknown!r} is not in corpus.jsonl; is the file of another corpus?")
        relevant = source.qrels.get(line.query_id, {})
        positive = next((doc for doc in line.doc_ids if doc in relevant), None)
        if positive is not None:
            raise DataError(
                f"{where}: document {positive!r} is relevant to query {line.query_id!r}, so it is no negative of it; "
                "take it out of the file, or mine again with these judgements"
            )
        found[line.query_id] = np.array(sorted({source.doc_rows[doc] for doc in line.doc_ids}), np.int32)
    return found


def _negatives_of(query: str, by_query: dict[str, np.ndarray], count: int, path: Path) -> np.ndarray:
    got = len(by_query[query]) if query in by_query else 0
    if got < count:
        raise DataError(
            f"{path}: query {query!r} has {got} different hard negatives, expected at least num_hard_negatives={count}"
        )
    return by_query[query]
