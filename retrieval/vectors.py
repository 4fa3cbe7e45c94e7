"""Committed vectors: the format `jaxscale.vectors`, its shards, its writer that resumes, and its reader.

The format is written down in docs/formats/vectors.md.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxscale import typed_json
from jaxscale.errors import DataError, JaxscaleError, UsageError
from jaxscale.store import arrays, commit, disk
from jaxscale.store.checksums import Check
from jaxscale.store.manifest import Manifest
from retrieval.contract import EmbeddingContract
from retrieval.encode import ComputeDtype
from retrieval.records import Doc
from retrieval.row_ids import read_row_ids, write_row_ids

FORMAT = "jaxscale.vectors"
SHARD_FORMAT = "jaxscale.vectors-shard"
VERSION = 1

_DESCRIPTION = "vectors.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorsDescription:
    """What a set of vectors is; a half-done set may only be finished under the same one.

    Attributes:
      contract: the space, and who speaks it.
      model: the SHA-256 that names the document encoder.
      corpus: the SHA-256 of the documents (`CorpusHash`).
      num_rows: documents in all (N).
      shard_size: rows in every shard but the last.
      compute_dtype: dtype of the encoder's products.
      mesh: the mesh that encodes.
      jax_version: of the process that encodes.
    """

    contract: EmbeddingContract
    model: str
    corpus: str
    num_rows: int
    shard_size: int
    compute_dtype: ComputeDtype
    mesh: str
    jax_version: str

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UsageError(f"shard_size={self.shard_size} must be at least 1 row")

    @property
    def num_shards(self) -> int:
        """How many shards hold `num_rows` rows."""
        return -(-self.num_rows // self.shard_size)

    def rows_of_shard(self, number: int) -> int:
        """How many rows shard `number` holds."""
        return min(self.shard_size, self.num_rows - number * self.shard_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
    """A committed set of vectors that was opened; rows are read when asked for.

    Attributes:
      path: its directory.
      manifest: of the whole.
      description: what it is.
      verified: whether every byte was checked on opening.
    """

    path: Path
    manifest: Manifest
    description: VectorsDescription
    verified: bool

    @property
    def num_rows(self) -> int:
        """How many vectors there are (N)."""
        return self.description.num_rows

    @property
    def num_dims(self) -> int:
        """Dims of every vector (E)."""
        return self.description.contract.num_dims

    def read_ids(self) -> list[str]:
        """The documents' ids, row by row."""
        return [id for number in range(self.description.num_shards) for id in read_row_ids(_shard(self.path, number))]

    def read(self) -> Float32[np.ndarray, "N E"]:
        """All vectors, in memory."""
        rows = np.empty((self.num_rows, self.num_dims), np.float32)
        for number in range(self.description.num_shards):
            start = number * self.description.shard_size
            shard = arrays.read(_shard(self.path, number), "vectors")
            rows[start : start + self.description.rows_of_shard(number)] = shard
        return rows


class CorpusHash:
    """The hash that names a corpus, fed one document after the other."""

    def __init__(self) -> None:
        self.num_docs = 0
        self._digest = hashlib.sha256()

    def add(self, doc: Doc) -> Doc:
        """Counts one more document in, and returns it."""
        self._digest.update(typed_json.canonical([doc.id, doc.title, doc.text]) + b"\n")
        self.num_docs += 1
        return doc

    @property
    def sha256(self) -> str:
        """The hash of the documents so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()

    @classmethod
    def of(cls, docs: Iterable[Doc]) -> "CorpusHash":
        """The hash of a whole corpus.

        >>> CorpusHash.of([Doc("1", "", "Fish swim.")]).num_docs
        1
        """
        corpus_hash = cls()
        for doc in docs:
            corpus_hash.add(doc)
        return corpus_hash


def open_vectors(path: str | Path, *, check: Check = "full") -> Vectors:
    """Opens a committed set of vectors.

    Args:
      path: its directory.
      check: `full` compares every byte with the manifest first, `sizes` names and sizes only.

    Raises:
      DataError: there is none, or something else is there.
      VerificationError: it is damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    description = typed_json.decode(VectorsDescription, committed.manifest.config, _DESCRIPTION)
    return Vectors(
        path=committed.path, manifest=committed.manifest, description=description, verified=committed.verified
    )


def claim_draft(directory: Path, description: VectorsDescription) -> None:
    """Makes a draft belong to a description, or checks that it does.

    Raises:
      UsageError: it holds the beginning of another set; the message names what differs.
    """
    file = directory / _DESCRIPTION
    if file.exists():
        require_same_description(file, json.loads(file.read_text(encoding="utf-8")), description)
    else:
        (directory / "shards").mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(typed_json.pretty(description), encoding="utf-8")
        disk.fsync(partial)
        partial.rename(file)


def require_same_description(where: Path, found: object, description: VectorsDescription) -> None:
    """Refuses to go on with vectors that are described otherwise.

    Args:
      where: the file or directory that holds `found`, for the message.
      found: the JSON of the description that is there.
      description: the one that is wanted.

    Raises:
      UsageError: they differ; the message names in what.
    """
    wanted = typed_json.encode(description)
    if found == wanted:
        return
    there = found if isinstance(found, dict) else {}
    differences = [
        f"{key} is {_short(there[key]) if key in there else 'not there'}, now {_short(value)}"
        for key, value in wanted.items()
        if key not in there or there[key] != value
    ]
    raise UsageError(
        f"{where} belongs to other vectors: {'; '.join(differences)}; choose another --out, or remove it first"
    )


def shard_is_complete(directory: Path, number: int) -> bool:
    """Whether a draft holds shard `number`, every byte of it; a damaged one is removed, to be made again."""
    shard = _shard(directory, number)
    try:
        commit.open_committed(shard, format=SHARD_FORMAT, version=VERSION, check="full")
    except JaxscaleError:
        if shard.exists():
            shutil.rmtree(shard)
        return False
    return True


def write_shard(
    directory: Path, number: int, *, ids: list[str], vectors: Float32[np.ndarray, "N E"], num_truncated: int
) -> None:
    """Commits shard `number` of a draft.

    Args:
      directory: the draft's directory.
      number: from 0.
      ids: the documents' ids.
      vectors: their vectors.
      num_truncated: how many of the documents were cut off.

    Raises:
      DataError: a vector is not finite.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = ids[int(np.flatnonzero(~finite)[0])]
        raise DataError(f"the encoder gives document {bad!r} a vector that is not finite; its weights are broken")
    with commit.draft(_shard(directory, number), format=SHARD_FORMAT, version=VERSION) as draft:
        write_row_ids(draft.path, ids)
        arrays.write(draft.path, "vectors", vectors)
        draft.counts |= {"rows": len(ids), "dims": vectors.shape[1], "truncated": num_truncated}


def finish_draft(draft: commit.Draft, description: VectorsDescription) -> None:
    """Fills in the manifest of a draft whose shards are all there, and removes what killed writers left in it."""
    _keep_only(draft.path, {_DESCRIPTION, "shards"})
    _keep_only(draft.path / "shards", {_shard(draft.path, number).name for number in range(description.num_shards)})
    num_truncated = sum(
        int(commit.open_committed(_shard(draft.path, number)).manifest.counts["truncated"])
        for number in range(description.num_shards)
    )
    draft.counts |= {
        "rows": description.num_rows,
        "dims": description.contract.num_dims,
        "shards": description.num_shards,
        "truncated": num_truncated,
        "truncated_share": num_truncated / max(1, description.num_rows),
    }
    draft.parents |= {"model": description.model, "corpus": description.corpus}
    draft.config = description


def discard_shards(directory: Path) -> None:
    """Empties a draft whose shards can't be trusted."""
    shutil.rmtree(directory / "shards")
    (directory / "shards").mkdir()


def _keep_only(directory: Path, names: set[str]) -> None:
    for entry in directory.iterdir():
        if entry.name in names:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _shard(directory: Path, number: int) -> Path:
    return directory / "shards" / f"{number:05d}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
