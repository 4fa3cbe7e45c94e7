"""The retriever in Python: `Retriever.load(folder).search("a question")` gives passages with their scores and texts.

`encode_queries` and `encode_documents` give the vectors of texts, of a model alone too.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.store import commit
from jaxscale.store.checksums import Check
from retrieval.contract import EmbeddingContract
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels, Run
from retrieval.index.bm25_folder import OpenedBM25, open_bm25
from retrieval.index.folder import open_index
from retrieval.records import Doc, Query
from retrieval.search.dense import DenseSearch, TextSearch, VectorSearch, comparable
from retrieval.search.exact import ExactSearcher
from retrieval.search.fusion import ChosenWeight
from retrieval.search.hybrid import FusionConfig, HybridSearch
from retrieval.search.topk import NO_ROW, TopK, require_positive_k
from retrieval.towers.loading import AS_IT_SAYS, EncoderOverrides, load_towers
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import CorpusHash, open_vectors

# What dev decides the fusion weight by.
DEV_MEASURE = "nDCG@10"
_DEV_DEPTH = 10
_NOTHING_TO_SEARCH = "there is nothing to search: give a model with index or vectors, or bm25"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """A document that was found.

    Attributes:
      doc_id: its id.
      score: higher is better; of what scale depends on the search.
      rank: from 1.
      doc: the document itself; None where no corpus was loaded.
    """

    doc_id: str
    score: float
    rank: int
    doc: Doc | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a retriever's parts are; the folders' formats are in docs/formats/.

    Attributes:
      model: a retriever, a model or a training run; not needed for BM25 alone.
      index: an index, or None.
      vectors: vectors, searched exactly, or None. Not both.
      bm25: a BM25 index, or None.
      corpus: the BEIR folder that gives hits their texts, or None.
    """

    model: Path | None = None
    index: Path | None = None
    vectors: Path | None = None
    bm25: Path | None = None
    corpus: Path | None = None

    @classmethod
    def of_home(cls, home: Path) -> "Sources":
        """The parts that lie in one folder under their names: model, index or else vectors, bm25, corpus.

        Raises:
          DataError: there is neither an index nor vectors nor a BM25 index.
        """
        names = ("model", "index", "vectors", "bm25", "corpus")
        there = {name: home / name for name in names if (home / name).is_dir()}
        if not {"index", "vectors", "bm25"} & there.keys():
            raise DataError(
                f"{home} holds neither index/ nor vectors/ nor bm25/; name them, or build them there with "
                "`jaxscale embed` and `jaxscale index build`"
            )
        left_out = {"vectors"} if "index" in there else set() if "vectors" in there else {"model"}
        return cls(**{name: part for name, part in there.items() if name not in left_out})

    @property
    def is_hybrid(self) -> bool:
        """Whether there are both vectors and BM25 to search."""
        return self.model is not None and self.bm25 is not None

    def __post_init__(self) -> None:
        if self.index is not None and self.vectors is not None:
            raise UsageError("index and vectors are both given; an index is searched, or vectors exactly: give one")
        dense = self.index is not None or self.vectors is not None
        if dense and self.model is None:
            raise UsageError("a dense search needs the model that encodes queries; give model, or bm25 alone")
        if self.model is not None and not dense:
            raise UsageError("a model is given but nothing to search with it; give index or vectors")
        if not dense and self.bm25 is None:
            raise UsageError(_NOTHING_TO_SEARCH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """The documents behind the rows of a search."""

    ids: list[str]
    corpus: str
    verified: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerEncoders:
    """The encoders of a model, each placed on the mesh when it is first asked for.

    Attributes:
      towers: the model.
      mesh: its devices share every batch.
      compute_dtype: dtype of the encoders' products.
    """

    towers: LoadedTowers
    mesh: Mesh
    compute_dtype: ComputeDtype

    @functools.cached_property
    def query(self) -> TextEncoder:
        """Of queries."""
        return TextEncoder(self.towers.query, self.mesh, compute_dtype=self.compute_dtype)

    @functools.cached_property
    def document(self) -> TextEncoder:
        """Of documents."""
        return TextEncoder(self.towers.document, self.mesh, compute_dtype=self.compute_dtype)


class _NothingToSearch:
    """The search of a model alone."""

    def search(self, queries: Sequence[str], k: int) -> TopK:
        raise UsageError(f"{_NOTHING_TO_SEARCH}; a model alone encodes texts")


class Retriever:
    """Searches texts, by vectors, by BM25 or by both, and encodes them."""

    def __init__(
        self,
        search: TextSearch,
        ids: Sequence[str],
        docs: Sequence[Doc] | None,
        *,
        verified: bool,
        encoders: TowerEncoders | None = None,
    ) -> None:
        """Joins a search with the documents behind its rows; `load` is the usual way here.

        Args:
          search: gives rows.
          ids: the documents' ids, row by row.
          docs: the documents, row by row; None leaves hits without texts.
          verified: whether every byte of what is searched was checked.
          encoders: of the model; None for BM25 alone.
        """
        self._encoders = encoders
        self.text_search = search
        self.verified = verified
        self._ids, self._docs = ids, docs

    @classmethod
    def load(
        cls,
        path: str | Path | Sources,
        *,
        index: str | Path | None = None,
        vectors: str | Path | None = None,
        bm25: str | Path | None = None,
        corpus: str | Path | None = None,
        fusion: FusionConfig | None = None,
        mesh: Mesh | None = None,
        compute_dtype: ComputeDtype = "float32",
        overrides: EncoderOverrides = AS_IT_SAYS,
        check: Check = "full",
    ) -> "Retriever":
        """Opens everything that a search needs.

        Args:
          path: a model, a retriever or a training run, to search `index` or `vectors` with, or to encode with alone;
            or, where neither is given, one folder that holds `model`, `index` or `vectors`, and perhaps `bm25` and
            `corpus`; or `Sources`.
          index: an index.
          vectors: vectors, searched exactly.
          bm25: a BM25 index; with it the search is hybrid.
          corpus: the BEIR folder that gives hits their texts.
          fusion: how a hybrid search fuses; equal weights when None. `choose_fusion_weight` does better.
          mesh: where queries are encoded and vectors searched; all devices when None.
          compute_dtype: dtype of the query encoder's products.
          overrides: how to use a model otherwise than its settings say; what the vectors were made with.
          check: `full` compares every byte before it is used, `sizes` names and sizes only (`verified` is False then).

        Raises:
          UsageError: the parts don't make a search, or the query encoder does not speak the vectors' contract.
          DataError: a part is missing, or they are of different corpora.
          VerificationError: a part is damaged; the message names the file.
        """
        mesh = mesh_from_text("") if mesh is None else mesh
        if not isinstance(path, Sources) and index is vectors is bm25 is corpus is None and _is_model_alone(Path(path)):
            towers = load_towers(Path(path), overrides=overrides, check=check)
            alone = TowerEncoders(towers=towers, mesh=mesh, compute_dtype=compute_dtype)
            return cls(_NothingToSearch(), [], None, verified=check == "full", encoders=alone)
        sources = _sources(path, index=index, vectors=vectors, bm25=bm25, corpus=corpus)
        encoders = None
        bm25_index = None if sources.bm25 is None else open_bm25(sources.bm25, check=check)
        if sources.model is None:
            if bm25_index is None:
                raise UsageError(_NOTHING_TO_SEARCH)
            search: TextSearch = bm25_index.bm25
            rows = _rows_of_bm25(bm25_index)
        else:
            towers = load_towers(sources.model, overrides=overrides, check=check)
            encoders = TowerEncoders(towers=towers, mesh=mesh, compute_dtype=compute_dtype)
            contract, vector_search, rows = _open_dense(sources, mesh, check)
            search = DenseSearch(towers, contract, vector_search, mesh, compute_dtype=compute_dtype)
            if bm25_index is not None:
                search = HybridSearch(search, bm25_index.bm25, FusionConfig() if fusion is None else fusion)
                rows = _same_rows(rows, _rows_of_bm25(bm25_index))
        docs = None if sources.corpus is None else _read_docs(sources.corpus, rows.corpus, check)
        return cls(search, rows.ids, docs, verified=rows.verified, encoders=encoders)

    def encode_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "Q E"]:
        """The vectors of queries, without the model's prefix, which is put before them here.

        Raises:
          UsageError: there is no model.
        """
        return self._model().query.encode(texts).vectors

    def encode_documents(self, texts: Sequence[str | Doc]) -> Float32[np.ndarray, "N E"]:
        """The vectors of documents; of a `Doc` its title and text, as a corpus is embedded.

        Raises:
          UsageError: there is no model.
        """
        passages = [text if isinstance(text, str) else text.passage for text in texts]
        return self._model().document.encode(passages).vectors

    def _model(self) -> TowerEncoders:
        if self._encoders is None:
            raise UsageError("there is no model to encode with, only BM25; give model")
        return self._encoders

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """The best `k` documents for one text, best first; fewer where there are fewer.

        Raises:
          UsageError: `k` is below 1, or the text is empty.
        """
        return self.search_many([text], k)[0]

    def search_many(self, texts: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """`search` for many texts at once, which is faster.

        Raises:
          UsageError: `k` is below 1, or a text is empty.
        """
        found = self._topk(texts, k)
        return [self._hits(rows, scores) for rows, scores in zip(found.rows, found.scores, strict=True)]

    def run(self, queries: Sequence[Query], k: int) -> Run:
        """The queries' results as a TREC run: query id -> document id -> score.

        Raises:
          UsageError: `k` is below 1, or a query is empty.
        """
        found = self._topk([query.text for query in queries], k)
        return self._as_run([query.id for query in queries], found)

    def choose_fusion_weight(self, queries: Sequence[Query], qrels: Qrels) -> tuple["Retriever", ChosenWeight]:
        """The same hybrid retriever with the weight that does best on dev queries by nDCG@10, and what each gave.

        Args:
          queries: the dev queries.
          qrels: their judgements.

        Raises:
          UsageError: the search is not hybrid.
          DataError: not one of the queries is judged.
        """
        if not isinstance(self.text_search, HybridSearch):
            raise UsageError(
                "a fusion weight can only be chosen for a hybrid search; give bm25 beside index or vectors"
            )
        judged = [query for query in queries if query.id in qrels]
        ids = [query.id for query in judged]
        judgements: Mapping[str, Mapping[str, int]] = {query_id: qrels[query_id] for query_id in ids}

        def measure(found: TopK) -> float:
            return evaluate(self._as_run(ids, found), judgements, [DEV_MEASURE]).mean(DEV_MEASURE)

        texts = [query.text for query in judged]
        search, chosen = self.text_search.with_chosen_weight(texts, measure, _DEV_DEPTH)
        chosen_one = Retriever(search, self._ids, self._docs, verified=self.verified, encoders=self._encoders)
        return chosen_one, chosen

    def _topk(self, texts: Sequence[str], k: int) -> TopK:
        require_positive_k(k)
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            which = "the query is" if len(texts) == 1 else f"query {empty[0]} of {len(texts)} is"
            raise UsageError(f"{which} empty; expected words to search for")
        return self.text_search.search(texts, k)

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        found = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if row != NO_ROW]
        return [
            Hit(doc_id=self._ids[row], score=score, rank=rank, doc=None if self._docs is None else self._docs[row])
            for rank, (row, score) in enumerate(found, 1)
        ]

    def _as_run(self, query_ids: Sequence[str], found: TopK) -> Run:
        return {
            query_id: {hit.doc_id: hit.score for hit in self._hits(rows, scores)}
            for query_id, rows, scores in zip(query_ids, found.rows, found.scores, strict=True)
        }


def _is_model_alone(path: Path) -> bool:
    """Whether a folder is of a model, a retriever or a training run, and has nothing in it to search."""
    has_parts = any((path / name).is_dir() for name in ("index", "vectors", "bm25"))
    is_model = commit.is_committed(path) or any((path / name).is_file() for name in ("job.json", "config.json"))
    return is_model and not has_parts


def _sources(path: str | Path | Sources, **parts: str | Path | None) -> Sources:
    given = {name: Path(part) for name, part in parts.items() if part is not None}
    if isinstance(path, Sources):
        if given:
            raise UsageError(f"{', '.join(given)} given twice: in the sources and beside them")
        return path
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    if "index" in given or "vectors" in given:
        return Sources(model=path, **given)
    return dataclasses.replace(Sources.of_home(path), **given)


def _open_dense(sources: Sources, mesh: Mesh, check: Check) -> tuple[EmbeddingContract, VectorSearch, _Rows]:
    if sources.index is not None:
        opened = open_index(sources.index, check=check)
        described = opened.description
        rows = _Rows(ids=opened.read_ids(), corpus=described.corpus, verified=opened.verified)
        return described.contract, opened.index, rows
    if sources.vectors is None:
        raise UsageError(_NOTHING_TO_SEARCH)
    vectors = open_vectors(sources.vectors, check=check)
    contract = vectors.description.contract
    rows = _Rows(ids=vectors.read_ids(), corpus=vectors.description.corpus, verified=vectors.verified)
    return contract, ExactSearcher(comparable(vectors.read(), contract), mesh), rows


def _rows_of_bm25(opened: OpenedBM25) -> _Rows:
    return _Rows(ids=opened.ids, corpus=opened.description.corpus, verified=opened.verified)


def _same_rows(dense: _Rows, bm25: _Rows) -> _Rows:
    if dense.corpus != bm25.corpus:
        raise DataError(
            f"the BM25 index is of another corpus than the vectors: {bm25.corpus[:12]}, expected {dense.corpus[:12]}; "
            "build it from the corpus that was embedded"
        )
    return dataclasses.replace(dense, verified=dense.verified and bm25.verified)


def _read_docs(path: Path, expected: str, check: Check) -> list[Doc]:
    corpus_hash = CorpusHash()
    docs = [corpus_hash.add(doc) for doc in BeirFolder.open(path, check=check).docs()]
    if corpus_hash.sha256 != expected:
        raise DataError(
            f"the corpus {path} is not the one that is searched: {corpus_hash.sha256[:12]}, expected {expected[:12]}; "
            "give the corpus that was embedded or indexed"
        )
    return docs
