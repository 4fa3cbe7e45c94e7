"""Measures BM25, the untrained tower, the trained tower and the hybrid on the same queries."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from retrieval.encode import encode_texts
from retrieval.evaluate import Evaluation, evaluate, paired_randomization
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Run
from retrieval.records import Query
from retrieval.retriever import Retriever, Sources
from retrieval.search.exact import ExactSearcher
from retrieval.towers.encoder import Encoder, init_encoder
from retrieval.towers.loading import load_towers

MEASURES = ("nDCG@10", "RR@10", "R@100")
# The split of the hand-written questions, a second test set.
NATURAL_SPLIT = "natural"
_DEPTH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The systems' measures on one set of queries.

    Attributes:
      split: which queries.
      systems: name -> its measures per query.
      dense_weight: the weight of the dense list in the hybrid, chosen on dev.
      hybrid_p: of a paired randomisation test of the hybrid against BM25 by nDCG@10, two-sided.
    """

    split: str
    systems: dict[str, Evaluation]
    dense_weight: float
    hybrid_p: float


class Systems:
    """The searches that are compared, over one corpus."""

    def __init__(self, home: Path, mesh: Mesh) -> None:
        """Opens them.

        Args:
          home: the folder with `model`, `vectors`, `bm25` and `corpus`.
          mesh: where queries are encoded and vectors searched.
        """
        self.corpus = BeirFolder.open(home / "corpus", check="full")
        parts = Sources(model=home / "model", vectors=home / "vectors", corpus=home / "corpus")
        self.dense = Retriever.load(parts, mesh=mesh)
        self.bm25 = Retriever.load(Sources(bm25=home / "bm25", corpus=home / "corpus"), mesh=mesh)
        both = Retriever.load(dataclasses.replace(parts, bm25=home / "bm25"), mesh=mesh)
        self.hybrid, chosen = both.choose_fusion_weight(self.queries("dev"), self.corpus.qrels("dev"))
        self.dense_weight = chosen.dense_weight
        self._untrained = _Untrained(home / "model", self.corpus, mesh)

    def queries(self, split: str) -> list[Query]:
        """The queries that a split judges, in the corpus's order."""
        judged = self.corpus.qrels(split)
        return [query for query in self.corpus.queries() if query.id in judged]

    def compare(self, split: str) -> Comparison:
        """Runs every system on the queries of a split and measures it."""
        queries, qrels = self.queries(split), self.corpus.qrels(split)
        runs = {
            "bm25": self.bm25.run(queries, _DEPTH),
            "untrained": self._untrained.run(queries),
            "dense": self.dense.run(queries, _DEPTH),
            "hybrid": self.hybrid.run(queries, _DEPTH),
        }
        systems = {name: evaluate(run, qrels, MEASURES) for name, run in runs.items()}
        hybrid, bm25 = (systems[name].values(MEASURES[0]) for name in ("hybrid", "bm25"))
        p = paired_randomization(hybrid, bm25)
        return Comparison(split=split, systems=systems, dense_weight=self.dense_weight, hybrid_p=p)


class _Untrained:
    """The same tower with fresh weights: what training has to be better than."""

    def __init__(self, model: Path, corpus: BeirFolder, mesh: Mesh) -> None:
        towers = load_towers(model)
        self._mesh = mesh
        key = jax.random.key(0)
        self._query, document = (
            Encoder(config=old.config, params=init_encoder(old.config, key), tokenizer=old.tokenizer)
            for old in (towers.query, towers.document)
        )
        docs = list(corpus.docs())
        self._ids = [doc.id for doc in docs]
        self._searcher = ExactSearcher(encode_texts(document, [doc.passage for doc in docs], mesh).vectors, mesh)

    def run(self, queries: list[Query]) -> Run:
        found = self._searcher.search(encode_texts(self._query, [q.text for q in queries], self._mesh).vectors, _DEPTH)
        return {
            query.id: {self._ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            for query, rows, scores in zip(queries, found.rows, found.scores, strict=True)
        }
