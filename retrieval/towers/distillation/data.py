"""The queries that a student learns from: those of a split, and if asked sentences of the corpus as more of them."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels
from retrieval.records import Doc, Query
from retrieval.towers.dev import sample

# A sentence ends where space follows one of these marks. It need not be exact: any span of text will do as a query.
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_FEWEST_WORDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryData:
    """Where the queries come from and how long they may be.

    Attributes:
      folder: a BEIR folder with queries.jsonl and qrels/SPLIT.tsv.
      split: the split whose queries are trained on.
      dev_split: the split whose queries tell the best checkpoint.
      sentences_per_passage: sentences of every passage of the corpus that are trained on as queries besides, at most.
      query_buckets: padded lengths of a batch, in tokens, rising; the last is the longest query kept.
      num_dev_queries: dev queries that are measured while training, at most; None: all.
    """

    folder: str = ""
    split: str = "train"
    dev_split: str = "dev"
    sentences_per_passage: int = 0
    query_buckets: tuple[int, ...] = (8, 16, 32)
    num_dev_queries: int | None = None

    def __post_init__(self) -> None:
        buckets = self.query_buckets
        if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
            raise UsageError(
                f"query_buckets={buckets} must be lengths in tokens, at least 1, each above the one before"
            )
        if self.sentences_per_passage < 0:
            raise UsageError(f"sentences_per_passage={self.sentences_per_passage} must be at least 0")
        if self.num_dev_queries is not None and self.num_dev_queries < 1:
            raise UsageError(f"num_dev_queries={self.num_dev_queries} must be at least 1, or None for all there are")

    @property
    def max_length(self) -> int:
        """Tokens kept of a query."""
        return self.query_buckets[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuerySource:
    """The queries, and which documents are relevant to them.

    Attributes:
      queries: to train on: the split's, then sentences.
      relevant: beside `queries`: the ids of the documents with a relevance above 0; of a sentence its own passage.
      dev: the dev queries.
      dev_qrels: their judgements.
    """

    queries: list[Query]
    relevant: list[tuple[str, ...]]
    dev: list[Query]
    dev_qrels: Qrels

    @property
    def all_queries(self) -> list[Query]:
        """Every query whose teacher's vector is needed, each once: those to train on, then dev's."""
        return list({query.id: query for query in (*self.queries, *self.dev)}.values())

    @property
    def sha256(self) -> str:
        """A hash of every record, whatever files they came in."""
        digest = hashlib.sha256()
        for query, relevant in zip(self.queries, self.relevant, strict=True):
            digest.update(typed_json.canonical(["query", query.id, query.text, relevant]))
        for query in self.dev:
            digest.update(typed_json.canonical(["dev", query.id, query.text, self.dev_qrels[query.id]]))
        return digest.hexdigest()


def read_source(data: QueryData) -> QuerySource:
    """Reads the queries of a BEIR folder; the corpus only where sentences of it are asked for.

    Args:
      data: the folder, its splits, and what is taken of them.

    Raises:
      DataError: a file or split is missing or malformed, a judged query is not there, or there are none.
      VerificationError: a committed folder is damaged.
    """
    beir = BeirFolder.open(Path(data.folder), check="full")
    qrels, dev_qrels = beir.qrels(data.split), beir.qrels(data.dev_split)
    by_id = {query.id: query for query in beir.queries() if query.id in qrels or query.id in dev_qrels}
    for split, judged in ((data.split, qrels), (data.dev_split, dev_qrels)):
        where = f"{beir.path}/qrels/{split}.tsv"
        if not judged:
            raise DataError(f"{where}: judges no query; nothing to learn from it")
        unknown = next((query_id for query_id in judged if query_id not in by_id), None)
        if unknown is not None:
            raise DataError(f"{where}: query {unknown!r} is not in queries.jsonl")
    queries = [by_id[query_id] for query_id in qrels]
    relevant = [tuple(doc for doc, relevance in judged.items() if relevance > 0) for judged in qrels.values()]
    if data.sentences_per_passage:
        for doc_id, sentence in passage_sentences(beir.docs(), data.sentences_per_passage):
            if sentence.id in by_id:
                raise DataError(f"{beir.path}: query {sentence.id!r} has the id that a sentence of {doc_id!r} is given")
            queries.append(sentence)
            relevant.append((doc_id,))
    dev_ids = sample(dev_qrels, data.num_dev_queries)
    return QuerySource(
        queries=queries,
        relevant=relevant,
        dev=[by_id[query_id] for query_id in dev_ids],
        dev_qrels={query_id: dev_qrels[query_id] for query_id in dev_ids},
    )


def passage_sentences(docs: Iterable[Doc], count: int) -> Iterable[tuple[str, Query]]:
    """At most `count` sentences of each passage, always the same ones, with the passage's id.

    Which of them is chosen by their hash, and not the first ones, which in news and articles are alike.

    Args:
      docs: the passages.
      count: of each passage, at least 1.

    >>> [query for _, query in passage_sentences([Doc("d", "", "One two three. No. Is it so?")], 2)]
    [Query(id='d#sentence0', text='One two three.'), Query(id='d#sentence1', text='Is it so?')]
    """
    for doc in docs:
        sentences = [s for s in _END_OF_SENTENCE.split(doc.text.strip()) if len(s.split()) >= _FEWEST_WORDS]
        chosen = set(sample(set(sentences), count))
        in_order = dict.fromkeys(sentence for sentence in sentences if sentence in chosen)
        for number, sentence in enumerate(in_order):
            yield doc.id, Query(f"{doc.id}#sentence{number}", sentence)
