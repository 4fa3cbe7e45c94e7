"""The committed index: opened only after its bytes were compared with the manifest, then searched.

The format, `jaxscale.index` version 1, is written down in docs/formats/index.md.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.store import arrays, commit
from jaxscale.store.checksums import Check
from jaxscale.store.manifest import Manifest
from retrieval.contract import EmbeddingContract
from retrieval.index import faiss_bridge
from retrieval.index.parameters import IvfPq, Parameters
from retrieval.index.recall import MeasuredRecall
from retrieval.row_ids import read_row_ids
from retrieval.search.topk import NO_ROW, TopK, inner_products, ranked, require_positive_k

FORMAT = "jaxscale.index"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexDescription:
    """The file index.json: what an index is.

    Attributes:
      contract: the embedding contract of the vectors.
      parameters: kind and parameters.
      recall: what was measured when it was built; None in the making.
      num_rows: N.
      num_dims: E.
      corpus: the hash of the documents.
      faiss_version: of the library that built it.
    """

    contract: EmbeddingContract
    parameters: Parameters
    recall: MeasuredRecall | None
    num_rows: int
    num_dims: int
    corpus: str
    faiss_version: str


class Index:
    """An index in memory, ready to be searched."""

    def __init__(
        self,
        description: IndexDescription,
        content: bytes,
        true_vectors: Float32[np.ndarray, "N E"] | None,
        num_threads: int | None = None,
    ) -> None:
        """Wraps faiss's bytes.

        Args:
          description: what they are.
          content: the bytes.
          true_vectors: what the best are scored again with; None for kinds that don't.
          num_threads: threads that a search may use; all cores when None.
        """
        self.description = description
        self._faiss = faiss_bridge.load(content)
        self._true_vectors = true_vectors
        self._num_threads = os.cpu_count() or 1 if num_threads is None else num_threads

    def search(self, queries: Float32[np.ndarray, "Q E"], k: int) -> TopK:
        """The best `min(k, N)` rows that the index finds for each query.

        Args:
          queries: query vectors.
          k: how many rows, at least 1.

        Returns:
          Rows and scores, inside a tie the lowest row first; row -1 where it finds fewer.

        Raises:
          UsageError: `k` is below 1, or the queries have another number of dims.
        """
        require_positive_k(k)
        described = self.description
        if queries.ndim != 2 or queries.shape[1] != described.num_dims:
            raise UsageError(
                f"queries of shape {queries.shape} can't search an index of {described.num_dims} dims; "
                "encode them with the encoder that made the vectors"
            )
        k = min(k, described.num_rows)
        if self._true_vectors is None or not isinstance(described.parameters, IvfPq):
            return self._nominated(queries, k)
        num_candidates = min(k * described.parameters.refine_factor, described.num_rows)
        return _refined(self._nominated(queries, num_candidates), queries, self._true_vectors, k)

    def _nominated(self, queries: Float32[np.ndarray, "Q E"], k: int) -> TopK:
        return faiss_bridge.search(self._faiss, self.description.parameters, queries, k, num_threads=self._num_threads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedIndex:
    """A committed index that was opened.

    Attributes:
      path: its directory.
      manifest: of the directory.
      description: what it is.
      verified: whether every byte was checked on opening; without that faiss may be given damaged bytes.
    """

    path: Path
    manifest: Manifest
    description: IndexDescription
    verified: bool

    def read_ids(self) -> list[str]:
        """The documents' ids, row by row."""
        return read_row_ids(self.path)

    @functools.cached_property
    def index(self) -> Index:
        """The index, read into memory once."""
        refines = has_true_vectors(self.description.parameters)
        true_vectors = arrays.read(self.path, "vectors") if refines else None
        return Index(self.description, (self.path / "index.faiss").read_bytes(), true_vectors)


def open_index(path: str | Path, *, check: Check = "full") -> OpenedIndex:
    """Opens a committed index.

    Args:
      path: its directory.
      check: `full` compares every byte with the manifest first; `sizes` names and sizes only, and says so by
        `verified=False`.

    Raises:
      DataError: there is none, or something else is there.
      VerificationError: it is damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    return OpenedIndex(
        path=committed.path,
        manifest=committed.manifest,
        description=typed_json.decode(IndexDescription, committed.manifest.config, "index.json"),
        verified=committed.verified,
    )


def has_true_vectors(parameters: Parameters) -> bool:
    """Whether an index of these parameters keeps the vectors themselves beside faiss's bytes."""
    return isinstance(parameters, IvfPq) and parameters.refine_factor > 0


def _refined(found: TopK, queries: Float32[np.ndarray, "Q E"], vectors: Float32[np.ndarray, "N E"], k: int) -> TopK:
    """The best `k` of what was found, by their true scores."""
    rows = np.full((queries.shape[0], k), NO_ROW, np.int64)
    scores = np.full((queries.shape[0], k), -np.inf, np.float32)
    for i, query in enumerate(queries):
        candidates = found.rows[i][found.rows[i] != NO_ROW]
        true_scores = inner_products(query, vectors, candidates).astype(np.float32)
        kept = ranked(candidates, true_scores, k)
        rows[i, : kept.size], scores[i, : kept.size] = candidates[kept], true_scores[kept]
    return TopK(rows=rows, scores=scores)
