"""The pairs a dual tower trains on, read from a BEIR folder: who belongs to whom."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxscale import typed_json
from jaxscale.data.lines import read_lines
from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels
from retrieval.records import Doc, Query
from retrieval.towers.in_batch import NO_DOCUMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """Where the pairs come from and how long their texts may be.

    Attributes:
      folder: a BEIR folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
      split: the split whose (query, relevant document) pairs are trained on.
      dev_split: the split whose queries tell the best checkpoint.
      hard_negatives: a jsonl file of `{"query_id": ..., "doc_ids": [...]}`; empty for none.
      num_hard_negatives: documents taken of it per query and step.
      crops_per_document: queries cropped out of every passage in an epoch, besides the labelled pairs; others each
        epoch. See `retrieval.towers.crops`.
      query_buckets: padded lengths of a batch of queries, in tokens, rising; the last is the longest query kept.
      document_buckets: the same of documents.
      num_dev_queries: dev queries that are searched while training, at most; None: all.
      num_dev_documents: documents they are searched among: their relevant ones, and others up to this number;
        None: the whole corpus.
    """

    folder: str = ""
    split: str = "train"
    dev_split: str = "dev"
    hard_negatives: str = ""
    num_hard_negatives: int = 0
    crops_per_document: int = 0
    query_buckets: tuple[int, ...] = (32,)
    document_buckets: tuple[int, ...] = (128,)
    num_dev_queries: int | None = 256
    num_dev_documents: int | None = 2048

    def __post_init__(self) -> None:
        for name in ("query_buckets", "document_buckets"):
            buckets = getattr(self, name)
            if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
                raise UsageError(f"{name}={buckets} must be lengths in tokens, at least 1, each above the one before")
        for name in ("num_dev_queries", "num_dev_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1, or None for all there are")
        for name in ("num_hard_negatives", "crops_per_document"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        if self.num_hard_negatives and self.crops_per_document:
            raise UsageError(
                f"crops_per_document={self.crops_per_document} and num_hard_negatives={self.num_hard_negatives} "
                "exclude each other, as a crop has no hard negatives; train on crops first, then with --init-from "
                "on hard negatives"
            )
        if bool(self.num_hard_negatives) != bool(self.hard_negatives):
            raise UsageError(
                f"num_hard_negatives={self.num_hard_negatives} and hard_negatives={self.hard_negatives!r} go together; "
                "give both, a number above 0 and a file, or neither"
            )

    @property
    def max_lengths(self) -> tuple[int, int]:
        """Tokens kept of a query and of a document."""
        return self.query_buckets[-1], self.document_buckets[-1]

    @property
    def dev_sampled(self) -> bool:
        """Whether the dev metric is computed on a sample."""
        return self.num_dev_queries is not None or self.num_dev_documents is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSource:
    """The texts and judgements of a BEIR folder that training needs, checked against each other.

    Attributes:
      docs: the whole corpus, in its order.
      doc_rows: a document's id -> its place in `docs`.
      queries: the queries of both splits, by id.
      qrels: the training split: query id -> document id -> relevance.
      dev_qrels: the same of the dev split.
    """

    docs: list[Doc]
    doc_rows: dict[str, int]
    queries: dict[str, Query]
    qrels: Qrels
    dev_qrels: Qrels

    def training_texts(self) -> Iterator[str]:
        """What a tokenizer may learn from: every passage, and the queries of the training split."""
        yield from (doc.passage for doc in self.docs)
        yield from (self.queries[query_id].text for query_id in self.qrels)

    @property
    def sha256(self) -> str:
        """A hash of every record, whatever files they came in."""
        digest = hashlib.sha256()
        for doc in self.docs:
            digest.update(typed_json.canonical(["doc", doc.id, doc.title, doc.text]))
        for query_id in sorted(self.queries):
            digest.update(typed_json.canonical(["query", query_id, self.queries[query_id].text]))
        digest.update(typed_json.canonical([self.qrels, self.dev_qrels]))
        return digest.hexdigest()


def read_source(folder: Path, split: str, dev_split: str) -> PairSource:
    """Reads a BEIR folder.

    Args:
      folder: with corpus.jsonl, queries.jsonl and qrels/.
      split: the split trained on.
      dev_split: the split the dev metric is computed on.

    Raises:
      DataError: a file is missing or malformed, a split has no relevant pair, or a judgement names a query or a
        document that is not there.
    """
    beir = BeirFolder.open(folder, check="full")
    docs = list(beir.docs())
    qrels = {name: _relevant_only(beir.qrels(name)) for name in (split, dev_split)}
    judged = set().union(*(q.keys() for q in qrels.values()))
    source = PairSource(
        docs=docs,
        doc_rows={doc.id: row for row, doc in enumerate(docs)},
        queries={query.id: query for query in beir.queries() if query.id in judged},
        qrels=qrels[split],
        dev_qrels=qrels[dev_split],
    )
    for name, judgements in qrels.items():
        _check_judgements(source, judgements, f"{folder}/qrels/{name}.tsv")
    return source


def _relevant_only(qrels: Qrels) -> Qrels:
    relevant = {query: {doc: rel for doc, rel in judged.items() if rel > 0} for query, judged in qrels.items()}
    return {query: judged for query, judged in relevant.items() if judged}


def _check_judgements(source: PairSource, qrels: Qrels, where: str) -> None:
    if not qrels:
        raise DataError(f"{where}: no query has a relevant document (relevance above 0); nothing to learn from it")
    for query_id, judged in qrels.items():
        if query_id not in source.queries:
            raise DataError(f"{where}: query {query_id!r} is not in queries.jsonl")
        unknown = next((doc_id for doc_id in judged if doc_id not in source.doc_rows), None)
        if unknown is not None:
            raise DataError(f"{where}: document {unknown!r} of query {query_id!r} is not in corpus.jsonl")


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


def make_table(source: PairSource, hard_negatives: Path | None, num_hard_negatives: int) -> PairTable:
    """Lays out the training split's pairs.

    Args:
      source: the texts and judgements.
      hard_negatives: a jsonl file of `{"query_id": ..., "doc_ids": [...]}`, or None.
      num_hard_negatives: how many each query must have there.

    Raises:
      DataError: the file names a document that is not in the corpus, or a query has too few.
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


def _read_hard_negatives(path: Path, source: PairSource) -> dict[str, Int[np.ndarray, "_"]]:
    if not path.is_file():
        raise DataError(f"hard_negatives: there is no file {str(path)!r}")
    found: dict[str, Int[np.ndarray, "_"]] = {}
    for number, text in read_lines(path):
        where = f"{path}:{number}"
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
        found[line.query_id] = np.array(sorted({source.doc_rows[doc] for doc in line.doc_ids}), np.int32)
    return found


def _negatives_of(query: str, by_query: dict[str, np.ndarray], count: int, path: Path) -> np.ndarray:
    got = len(by_query[query]) if query in by_query else 0
    if got < count:
        raise DataError(
            f"{path}: query {query!r} has {got} different hard negatives, expected at least num_hard_negatives={count}"
        )
    return by_query[query]
