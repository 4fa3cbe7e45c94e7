"""The texts and judgements a dual tower trains on, read from a BEIR folder, and what a job says of them."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels
from retrieval.records import Doc, Query
from retrieval.towers.near_duplicates import LOWEST_JACCARD


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """Where the pairs come from and how long their texts may be.

    Attributes:
      folder: a BEIR folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
      split: the split whose (query, relevant document) pairs are trained on.
      dev_split: the split whose queries tell the best checkpoint.
      hard_negatives: a folder that `jaxscale mine` wrote, or a jsonl file of `{"query_id": ..., "doc_ids": [...]}`;
        empty for none.
      num_hard_negatives: documents taken of it per query and step.
      hard_negative_draws: which of a query's they are: others at every `step`, or, by `epoch`, all but these dropped in
        an epoch, and none taken again before all that can be have had their turn.
      crops_per_document: queries cropped out of every passage in an epoch, besides the labelled pairs; others each
        epoch. See `retrieval.towers.crops`.
      query_buckets: padded lengths of a batch of queries, in tokens, rising; the last is the longest query kept.
      document_buckets: the same of documents.
      num_dev_queries: dev queries that are searched while training, at most; None: all.
      num_dev_documents: documents they are searched among: their relevant ones, and others up to this number;
        None: the whole corpus.
      duplicate_jaccard: documents whose shingles are similar to this degree, in [0.5, 1], are near-duplicates: a
        query's own document in a batch keeps those of its group from being negatives of that query; those of its other
        relevant documents stay negatives. See `retrieval.towers.near_duplicates`. None: not looked for.
      source_separator: batches are drawn within a source: documents whose ids are alike up to where this text first
        stands in them. Empty: out of all.
      clusters: batches are drawn within a cluster: a jsonl file of `{"doc_id": ..., "cluster": ...}`, that names every
        document with a query. Empty: out of all.
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
    hard_negative_draws: Literal["step", "epoch"] = typed_json.added("step")
    duplicate_jaccard: float | None = typed_json.added(None)
    source_separator: str = typed_json.added("")
    clusters: str = typed_json.added("")

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
        if self.duplicate_jaccard is not None and not LOWEST_JACCARD <= self.duplicate_jaccard <= 1:
            raise UsageError(
                f"duplicate_jaccard={self.duplicate_jaccard} must be between {LOWEST_JACCARD} and 1, as 0.8, or None"
            )
        if self.source_separator and self.clusters:
            raise UsageError(
                f"source_separator={self.source_separator!r} and clusters={self.clusters!r} both say what batches are "
                "drawn within; give one of them"
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
    judged_of = {name: beir.qrels(name) for name in (split, dev_split)}
    qrels = {name: _relevant_only(of_split) for name, of_split in judged_of.items()}
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
    _check_positives(judged_of[split], source.qrels, f"{folder}/qrels/{split}.tsv")
    return source


def _check_positives(judged: Qrels, relevant: Qrels, where: str) -> None:
    without = sorted(judged.keys() - relevant.keys())
    if without:
        raise DataError(
            f"{where}: {len(without)} of {len(judged)} queries, such as {without[0]!r}, have no relevant document "
            "(relevance above 0) that they could be trained to find; leave them out of the split"
        )


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
