"""Committed vectors to a committed index, with its recall measured against exact search before it is committed."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.store import arrays, commit
from jaxscale.store.failpoints import failpoint
from retrieval.index import faiss_bridge
from retrieval.index.folder import FORMAT, VERSION, Index, IndexDescription, OpenedIndex, has_true_vectors, open_index
from retrieval.index.parameters import Hnsw, IndexRequest, choose_parameters
from retrieval.index.recall import GIVEN, RECALL_K, SAMPLED, MeasuredRecall, recall, sample_rows, without_own_row
from retrieval.row_ids import write_row_ids
from retrieval.search.dense import comparable
from retrieval.search.exact import ExactSearcher
from retrieval.vectors import Vectors

_MAX_SEED = 2**31 - 1  # faiss's ClusteringParameters.seed is a C int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an index is built, its parameters aside.

    Attributes:
      seed: of k-means and of the sampled queries, 0 to 2^31 - 1.
      num_threads: threads that faiss builds with. None: all cores, but one for HNSW, so that its bytes are the same
        every time.
      num_recall_queries: how many rows are sampled to measure recall with, where no queries are given.
    """

    seed: int = 0
    num_threads: int | None = None
    num_recall_queries: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MAX_SEED:
            raise UsageError(f"seed={self.seed} must be between 0 and {_MAX_SEED}")
        if self.num_threads is not None and self.num_threads < 1:
            raise UsageError(f"num_threads={self.num_threads} must be at least 1")
        if self.num_recall_queries < 1:
            raise UsageError(f"num_recall_queries={self.num_recall_queries} must be at least 1")


def build_index(
    vectors: Vectors,
    out: Path,
    request: IndexRequest,
    mesh: Mesh,
    *,
    options: BuildOptions | None = None,
    queries: Float32[np.ndarray, "Q E"] | None = None,
    replace: bool = False,
) -> OpenedIndex:
    """Builds an index, measures its recall@10, and commits both together.

    Args:
      vectors: what to index.
      out: the directory to make, see docs/formats/index.md.
      request: the kind, and the parameters that are not to be chosen.
      mesh: where the exact search runs that recall is measured against.
      options: threads, seed and sample size; the defaults when None.
      queries: query vectors to measure recall with; None samples rows.
      replace: whether an index that is at `out` already is replaced, in one step.

    Returns:
      The index, opened; every byte was checked.

    Raises:
      UsageError: a parameter is wrong, or `out` exists already.
      DataError: there are too few vectors for the parameters.
      MachineError: another writer is at work on `out`, or the disk is full.
    """
    options = BuildOptions() if options is None else options
    parameters = choose_parameters(request, vectors.num_rows, vectors.num_dims)
    num_threads = options.num_threads
    if num_threads is None:
        num_threads = 1 if isinstance(parameters, Hnsw) else os.cpu_count() or 1
    with commit.draft(out, format=FORMAT, version=VERSION, replace=replace) as draft:
        rows = comparable(vectors.read(), vectors.description.contract)
        content = faiss_bridge.build(rows, parameters, seed=options.seed, num_threads=num_threads).tobytes()
        failpoint("index.built")
        description = IndexDescription(
            contract=vectors.description.contract,
            parameters=parameters,
            recall=None,
            num_rows=vectors.num_rows,
            num_dims=vectors.num_dims,
            corpus=vectors.description.corpus,
            faiss_version=faiss_bridge.VERSION,
        )
        index = Index(description, content, rows if has_true_vectors(parameters) else None, num_threads)
        description = dataclasses.replace(description, recall=measure(index, rows, mesh, options, queries))
        (draft.path / "index.faiss").write_bytes(content)
        failpoint("index.written")
        if has_true_vectors(parameters):
            arrays.write(draft.path, "vectors", rows)
        write_row_ids(draft.path, vectors.read_ids())
        (draft.path / "index.json").write_text(typed_json.pretty(description), encoding="utf-8")
        _fill_manifest(draft, description, vectors)
    return open_index(out)


def measure(
    index: Index,
    rows: Float32[np.ndarray, "N E"],
    mesh: Mesh,
    options: BuildOptions,
    queries: Float32[np.ndarray, "Q E"] | None,
) -> MeasuredRecall:
    """The recall@10 of an index, against exact search over the same rows.

    Args:
      index: what is measured.
      rows: its vectors.
      mesh: where the exact search runs.
      options: seed and size of the sample.
      queries: query vectors; None samples rows, each of which is left out of its own result.
    """
    exact = ExactSearcher(rows, mesh)
    if queries is not None:
        k = min(RECALL_K, rows.shape[0])
        value = recall(index.search(queries, k), exact.search(queries, k), queries, rows) if len(queries) else None
        return MeasuredRecall(k=k, value=value, num_queries=len(queries), queries=GIVEN, seed=options.seed)
    own = sample_rows(rows.shape[0], options.num_recall_queries, options.seed)
    k = min(RECALL_K, rows.shape[0] - 1)
    if k == 0:
        return MeasuredRecall(k=0, value=None, num_queries=0, queries=SAMPLED, seed=options.seed)
    sampled = rows[own]
    found, best = (without_own_row(searcher.search(sampled, k + 1), own) for searcher in (index, exact))
    value = recall(found, best, sampled, rows)
    return MeasuredRecall(k=k, value=value, num_queries=own.size, queries=SAMPLED, seed=options.seed)


def _fill_manifest(draft: commit.Draft, description: IndexDescription, vectors: Vectors) -> None:
    measured = description.recall
    draft.counts |= {"rows": description.num_rows, "dims": description.num_dims}
    if measured is not None and measured.value is not None:
        draft.counts["recall_at_10"] = measured.value
    draft.parents |= {"vectors": vectors.manifest.identity, **vectors.manifest.parents}
    draft.config = description
