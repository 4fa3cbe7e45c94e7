"""Which source or cluster every document belongs to, where batches are drawn within one."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from jaxscale.data.lines import read_typed_lines
from jaxscale.errors import DataError
from retrieval.towers.pairs import PairData, PairSource


@dataclasses.dataclass(frozen=True)
class _ClusterLine:
    """A line of a file of clusters."""

    doc_id: str
    cluster: str | int


def groups_of_documents(
    source: PairSource, data: PairData, rows: Int[np.ndarray, "N"]
) -> Int32[np.ndarray, "N"] | None:
    """The group of each of some documents, numbered in the order of the groups' names; None where none are asked for.

    Args:
      source: the corpus.
      data: says whether a source is told by ids, or clusters by a file.
      rows: the documents.

    Raises:
      DataError: the file is missing or malformed, or a document is in no group.
    """
    ids = [source.docs[row].id for row in rows]
    if data.source_separator:
        names = [_source_of(doc_id, data.source_separator) for doc_id in ids]
    elif data.clusters:
        names = _clusters_of(ids, Path(data.clusters), source)
    else:
        return None
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int32)


def _source_of(doc_id: str, separator: str) -> str:
    name, found, _ = doc_id.partition(separator)
    if not found:
        raise DataError(f"document {doc_id!r} has no source_separator={separator!r} in its id; expected it in every id")
    return name


def clusters_sha256(path: Path) -> str:
    """The hash of a file of clusters.

    Raises:
      DataError: there is none.
    """
    _require_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"clusters: there is no file {str(path)!r}")


def _clusters_of(ids: list[str], path: Path, source: PairSource) -> list[str]:
    _require_file(path)
    found: dict[str, str] = {}
    for where, line in read_typed_lines(path, _ClusterLine):
        if line.doc_id in found:
            raise DataError(f"{where}: document {line.doc_id!r} stands in the file twice")
        if line.doc_id not in source.doc_rows:
            raise DataError(f"{where}: document {line.doc_id!r} is not in corpus.jsonl; is the file of another corpus?")
        found[line.doc_id] = str(line.cluster)
    without = next((doc_id for doc_id in ids if doc_id not in found), None)
    if without is not None:
        raise DataError(f"{path}: document {without!r} has a query, but no line; give it a cluster")
    return [found[doc_id] for doc_id in ids]
