"""The committed BM25 index: built from a BEIR folder, opened only after its bytes were compared with the manifest.

The format, `jaxscale.bm25` version 1, is written down in docs/formats/bm25-index.md.
"""

import dataclasses
from pathlib import Path

from jaxscale import typed_json
from jaxscale.errors import DataError
from jaxscale.store import commit
from jaxscale.store.checksums import Check
from jaxscale.store.failpoints import failpoint
from jaxscale.store.manifest import Manifest
from retrieval.formats.beir import BeirFolder
from retrieval.row_ids import read_row_ids, write_row_ids
from retrieval.search.bm25 import BM25, BM25Config
from retrieval.vectors import CorpusHash

FORMAT = "jaxscale.bm25"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25Description:
    """The file bm25.json: what a BM25 index is.

    Attributes:
      config: parameters and analyser.
      analyser_fingerprint: of the analyser with the stemmer that was installed.
      num_rows: passages (N).
      num_terms: different terms.
      corpus: the hash of the documents.
    """

    config: BM25Config
    analyser_fingerprint: str
    num_rows: int
    num_terms: int
    corpus: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedBM25:
    """A committed BM25 index that was opened and read.

    Attributes:
      path: its directory.
      manifest: of the directory.
      description: what it is.
      verified: whether every byte was checked on opening.
      bm25: the index.
      ids: the documents' ids, row by row.
    """

    path: Path
    manifest: Manifest
    description: BM25Description
    verified: bool
    bm25: BM25
    ids: list[str]


def build_bm25(corpus: BeirFolder, out: Path, config: BM25Config | None = None, *, replace: bool = False) -> OpenedBM25:
    """Indexes the passages of a corpus and commits the index.

    Args:
      corpus: what to index.
      out: the directory to make.
      config: parameters and analyser; the defaults when None.
      replace: whether a BM25 index that is at `out` already is replaced, in one step.

    Raises:
      UsageError: `out` exists already.
      DataError: the corpus is malformed, or has not one word.
      MachineError: another writer is at work on `out`, or the disk is full.
    """
    with commit.draft(out, format=FORMAT, version=VERSION, replace=replace) as draft:
        corpus_hash = CorpusHash()
        docs = [corpus_hash.add(doc) for doc in corpus.docs()]
        bm25 = BM25.build((doc.passage for doc in docs), config)
        failpoint("lexical_index.built")
        description = BM25Description(
            config=bm25.config,
            analyser_fingerprint=bm25.analyser.fingerprint,
            num_rows=bm25.num_rows,
            num_terms=bm25.num_terms,
            corpus=corpus_hash.sha256,
        )
        bm25.save_arrays(draft.path / "scorer")
        write_row_ids(draft.path, [doc.id for doc in docs])
        (draft.path / "bm25.json").write_text(typed_json.pretty(description), encoding="utf-8")
        draft.counts |= {"rows": bm25.num_rows, "terms": bm25.num_terms}
        draft.parents["corpus"] = description.corpus
        draft.config = description
    return open_bm25(out)


def open_bm25(path: str | Path, *, check: Check = "full") -> OpenedBM25:
    """Opens and reads a committed BM25 index.

    Args:
      path: its directory.
      check: `full` compares every byte with the manifest first, `sizes` names and sizes only.

    Raises:
      DataError: there is none, or something else is there.
      VerificationError: it is damaged; the message names the file.
      MachineError: the stemmer installed is not the one that built it.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    description = typed_json.decode(BM25Description, committed.manifest.config, "bm25.json")
    bm25 = BM25.load_arrays(committed.path / "scorer", description.config)
    bm25.analyser.require_fingerprint(description.analyser_fingerprint, str(path))
    if bm25.num_rows != description.num_rows:
        raise DataError(f"{path}: bm25.json says {description.num_rows} rows, the arrays have {bm25.num_rows}")
    return OpenedBM25(
        path=committed.path,
        manifest=committed.manifest,
        description=description,
        verified=committed.verified,
        bm25=bm25,
        ids=read_row_ids(committed.path),
    )
