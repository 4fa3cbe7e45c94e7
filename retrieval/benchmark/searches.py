"""The searches of one BEIR folder: BM25, the vectors of a retriever exactly, and both fused, each done once."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import spec_of
from jaxscale.store import commit
from retrieval.benchmark.runs_folder import Identity, RunsDescription
from retrieval.embed import embed_corpus, print_progress
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels, Run
from retrieval.index.bm25_folder import OpenedBM25, build_bm25, open_bm25
from retrieval.records import Query
from retrieval.retriever import Retriever
from retrieval.search.bm25 import BM25Config
from retrieval.search.dense import DenseSearch, TextSearch, comparable
from retrieval.search.exact import ExactSearcher
from retrieval.search.hybrid import FusionConfig, HybridSearch
from retrieval.search.queries import read_queries
from retrieval.search.topk import TopK
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import CorpusHash, Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How every folder is searched.

    Attributes:
      split: whose queries are searched and judged.
      dev: the split that chooses the weight of the dense list, in the folders that have it.
      dense_weight: the weight in the others, 0 to 1.
      depth: documents that a run keeps of each query, and rows of each list that are fused.
      compute_dtype: of the encoders' products.
    """

    split: str = "test"
    dev: str = "dev"
    dense_weight: float = 0.5
    depth: int = 100
    compute_dtype: ComputeDtype = "float32"

    def __post_init__(self) -> None:
        FusionConfig(dense_weight=self.dense_weight, depth=self.depth)
        if self.split == self.dev:
            raise UsageError(
                f"split and dev are both {self.dev!r}: a weight chosen on the test queries measures nothing"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A BEIR folder that was read: what is searched and what with.

    Attributes:
      name: the folder's own.
      folder: where the documents are.
      corpus: the SHA-256 of the documents.
      num_docs: how many there are.
      queries: those of the split that is measured.
      qrels: its judgements.
      dev_queries: those of the dev split; none where the folder has none.
      dev_qrels: its judgements.
    """

    name: str
    folder: BeirFolder
    corpus: str
    num_docs: int
    queries: tuple[Query, ...]
    qrels: Qrels
    dev_queries: tuple[Query, ...]
    dev_qrels: Qrels


def read_dataset(path: Path, options: SearchOptions) -> Dataset:
    """Reads a BEIR folder whole, its documents as a stream.

    Args:
      path: the folder.
      options: names the splits.

    Raises:
      DataError: it is malformed, has no such split, or no query of it.
      VerificationError: a committed folder is damaged.
    """
    folder = BeirFolder.open(path, check="full")
    qrels = folder.qrels(options.split)
    if not qrels:
        raise DataError(f"{path}: the split {options.split!r} judges nothing")
    has_dev = options.dev in folder.splits
    corpus_hash = CorpusHash.of(folder.docs())
    return Dataset(
        name=path.resolve().name,
        folder=folder,
        corpus=corpus_hash.sha256,
        num_docs=corpus_hash.num_docs,
        queries=tuple(read_queries(path, options.split)),
        qrels=qrels,
        dev_queries=tuple(read_queries(path, options.dev)) if has_dev else (),
        dev_qrels=folder.qrels(options.dev) if has_dev else {},
    )


def identity_of(dataset: Dataset, towers: LoadedTowers, options: SearchOptions) -> Identity:
    """What the runs of a dataset by a retriever are of.

    Args:
      dataset: what is searched.
      towers: whose encoders are used.
      options: how.
    """
    asked = [[query.id, query.text] for query in dataset.queries]
    dev = [[query.id, query.text] for query in dataset.dev_queries]
    return Identity(
        query_encoder=towers.identity("query").sha256,
        document_encoder=towers.identity("document").sha256,
        corpus=dataset.corpus,
        queries=typed_json.fingerprint(asked),
        split=options.split,
        dev=typed_json.fingerprint([dev, dataset.dev_qrels]) if dev else None,
        dense_weight=None if dataset.dev_queries else options.dense_weight,
        depth=options.depth,
        compute_dtype=options.compute_dtype,
        bm25=BM25Config(),
    )


class Parts:
    """The folder in which a dataset's vectors and BM25 index are while it is searched."""

    def __init__(self, path: Path) -> None:
        """Names the folder; it is made when something is put there."""
        self.path = path

    def bm25(self, dataset: Dataset) -> OpenedBM25:
        """The BM25 index of a dataset, built where it is not there yet.

        Raises:
          UsageError: one of another corpus is there.
        """
        place = self.path / "bm25"
        if not commit.is_committed(place):
            return build_bm25(dataset.folder, place)
        opened = open_bm25(place)
        if opened.description.corpus != dataset.corpus or opened.description.config != BM25Config():
            raise UsageError(
                f"{place} is of another corpus or has other parameters; remove it, or choose another --out"
            )
        return opened

    def vectors(self, dataset: Dataset, towers: LoadedTowers, mesh: Mesh, dtype: ComputeDtype) -> Vectors:
        """The vectors of a dataset by a retriever, made where they are not there yet, shard by shard.

        Raises:
          UsageError: vectors made on another mesh or by another jax are there.
        """
        place = self.path / f"vectors-{typed_json.fingerprint(towers.contract)[:12]}"
        return embed_corpus(towers, dataset.folder, place, mesh, compute_dtype=dtype, on_shard=print_progress)

    def remove(self) -> None:
        """Removes all of it, and the folder above where it is empty then."""
        for part in self.path.iterdir() if self.path.is_dir() else ():
            if commit.is_committed(part):
                commit.remove(part)
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def search_dataset(
    dataset: Dataset, towers: LoadedTowers, parts: Parts, mesh: Mesh, options: SearchOptions
) -> tuple[dict[str, Run], RunsDescription]:
    """Searches a dataset by BM25, exactly by vectors, and by both.

    Args:
      dataset: what is searched.
      towers: the retriever.
      parts: where its vectors and the BM25 index are made, or are already.
      mesh: where texts are encoded and vectors searched.
      options: how.

    Returns:
      A run by each of `runs_folder.SYSTEMS`, and what they are.

    Raises:
      UsageError: the parts are of something else.
      DataError: the corpus changed while it was read.
    """
    lexical = parts.bm25(dataset)
    vectors = parts.vectors(dataset, towers, mesh, options.compute_dtype)
    contract = vectors.description.contract
    searcher = ExactSearcher(comparable(vectors.read(), contract), mesh)
    bm25 = _Once(lexical.bm25)
    dense = _Once(DenseSearch(towers, contract, searcher, mesh, compute_dtype=options.compute_dtype))
    fusion = FusionConfig(dense_weight=options.dense_weight, depth=options.depth)
    hybrid = HybridSearch(dense, bm25, fusion)
    retrievers = {
        name: Retriever(search, lexical.ids, None, verified=lexical.verified and vectors.verified)
        for name, search in (("bm25", bm25), ("dense", dense), ("hybrid", hybrid))
    }
    weight = options.dense_weight
    if dataset.dev_queries:
        retrievers["hybrid"], chosen = retrievers["hybrid"].choose_fusion_weight(dataset.dev_queries, dataset.dev_qrels)
        weight = chosen.dense_weight
    runs = {name: retriever.run(dataset.queries, options.depth) for name, retriever in retrievers.items()}
    description = RunsDescription(
        identity=identity_of(dataset, towers, options),
        dense_weight=weight,
        num_docs=dataset.num_docs,
        num_queries=len(dataset.queries),
        num_truncated=int(vectors.manifest.counts["truncated"]),
        mesh=str(spec_of(mesh)),
        jax_version=jax.__version__,
    )
    return runs, description


class _Once:
    """A search that answers the same queries a second time from memory."""

    def __init__(self, search: TextSearch) -> None:
        self._search = search
        self._found: dict[tuple[tuple[str, ...], int], TopK] = {}

    def search(self, queries: Sequence[str], k: int) -> TopK:
        key = (tuple(queries), k)
        if key not in self._found:
            self._found[key] = self._search.search(queries, k)
        return self._found[key]
