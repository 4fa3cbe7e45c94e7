"""The committed runs of one BEIR folder: the format `jaxscale.benchmark-runs`, in docs/formats/benchmark.md."""

import dataclasses
from pathlib import Path

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.store import commit
from jaxscale.store.checksums import Check
from retrieval.encode import ComputeDtype
from retrieval.formats.trec import Run, read_run, write_run
from retrieval.search.bm25 import BM25Config

FORMAT, VERSION = "jaxscale.benchmark-runs", 1
SYSTEMS = ("bm25", "dense", "hybrid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What the runs of a folder are of; the same command finds them again by it.

    Attributes:
      query_encoder: the SHA-256 that names the encoder of queries.
      document_encoder: the SHA-256 that names the encoder of documents.
      corpus: the SHA-256 of the documents (`CorpusHash`).
      queries: the SHA-256 of the queries that are searched.
      split: whose they are.
      dev: the SHA-256 of the dev queries and judgements that choose the dense list's weight; None where there are none.
      dense_weight: the weight where no dev split chooses one; None where one does.
      depth: documents that a run keeps of each query, and rows of each list that are fused.
      compute_dtype: of the encoders' products.
      bm25: BM25's parameters and analyser.
    """

    query_encoder: str
    document_encoder: str
    corpus: str
    queries: str
    split: str
    dev: str | None
    dense_weight: float | None
    depth: int
    compute_dtype: ComputeDtype
    bm25: BM25Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsDescription:
    """The manifest's `config`: what the runs are, and what was met on the way.

    Attributes:
      identity: what they are of.
      dense_weight: the weight of the dense list in the hybrid.
      num_docs: documents of the corpus.
      num_queries: queries that were searched.
      num_truncated: documents cut off at the encoder's length limit.
      mesh: where texts were encoded and vectors searched.
      jax_version: of the process that did it.
    """

    identity: Identity
    dense_weight: float
    num_docs: int
    num_queries: int
    num_truncated: int
    mesh: str
    jax_version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderRuns:
    """The runs of one BEIR folder, opened.

    Attributes:
      path: their directory.
      manifest_identity: names the directory's content.
      description: what they are.
    """

    path: Path
    manifest_identity: str
    description: RunsDescription

    def read(self, system: str) -> Run:
        """The run of one of `SYSTEMS`."""
        return read_run(self.path / f"{system}.trec")


def write_runs(path: Path, runs: dict[str, Run], description: RunsDescription) -> FolderRuns:
    """Commits the runs of `SYSTEMS`.

    Args:
      path: the directory to make.
      runs: by system.
      description: what they are.

    Raises:
      UsageError: something is at `path` already.
      MachineError: another writer is at work on `path`, or the disk is full.
    """
    with commit.draft(path, format=FORMAT, version=VERSION) as draft:
        for system in SYSTEMS:
            write_run(draft.path / f"{system}.trec", runs[system], system)
        identity = description.identity
        draft.counts |= {"docs": description.num_docs, "queries": description.num_queries}
        draft.counts["truncated"] = description.num_truncated
        draft.parents |= {"model": identity.document_encoder, "corpus": identity.corpus}
        draft.config = description
    return open_runs(path)


def open_runs(path: Path, *, check: Check = "full") -> FolderRuns:
    """Opens committed runs.

    Args:
      path: their directory.
      check: `full` compares every byte with the manifest first, `sizes` names and sizes only.

    Raises:
      DataError: there are none, or something else is there.
      VerificationError: they are damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    description = typed_json.decode(RunsDescription, committed.manifest.config, "MANIFEST.json: config")
    return FolderRuns(path=path, manifest_identity=committed.manifest.identity, description=description)


def require_same(runs: FolderRuns, wanted: Identity, names: tuple[str, ...] = ()) -> None:
    """Refuses runs of something else.

    Args:
      runs: that are there.
      wanted: what they should be of.
      names: the fields of the identity that are compared; all of them when empty.

    Raises:
      UsageError: they differ; the message names in what.
    """
    found = typed_json.encode(runs.description.identity)
    asked = typed_json.encode(wanted)
    differing = [name for name in names or tuple(asked) if found[name] != asked[name]]
    if differing:
        shown = "; ".join(f"{name} is {_short(found[name])}, now {_short(asked[name])}" for name in differing)
        raise UsageError(f"{runs.path} holds runs of something else: {shown}; choose another --out, or remove it first")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
