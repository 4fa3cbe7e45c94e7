"""The folder that mined negatives are kept in: the format `jaxscale.negatives`, written and read.

The format is written down in docs/formats/negatives.md.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.errors import DataError
from jaxscale.store import commit
from jaxscale.store.manifest import Manifest
from retrieval.contract import EmbeddingContract
from retrieval.encode import ComputeDtype
from retrieval.towers.mining import Mined, Mining
from retrieval.towers.pairs import PairSource
from retrieval.vectors import CorpusHash

FORMAT, VERSION = "jaxscale.negatives", 2
# Of folders without a re-ranker's scores, which readers of version 1 know.
_WITHOUT_SCORES = 1
_FILE = "negatives.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativesDescription:
    """What a set of negatives is.

    Attributes:
      mining: the rules it was chosen by.
      contract: of the vectors that were searched.
      query_encoder: the SHA-256 that names the encoder of the queries.
      document_encoder: the same of the documents.
      corpus: the SHA-256 of the documents (`CorpusHash`).
      queries: the SHA-256 of the split's queries and judgements (`queries_sha256`).
      split: its name.
      compute_dtype: dtype of the encoders' products.
      reranker: the identity of the re-ranker whose scores are beside the negatives; empty where there are none.
    """

    mining: Mining
    contract: EmbeddingContract
    query_encoder: str
    document_encoder: str
    corpus: str
    queries: str
    split: str
    compute_dtype: ComputeDtype
    reranker: str = typed_json.added("")


def queries_sha256(source: PairSource) -> str:
    """The hash of a training split: its queries and what is relevant to them."""
    digest = hashlib.sha256()
    for query_id, relevant in source.qrels.items():
        digest.update(typed_json.canonical([query_id, source.queries[query_id].text, relevant]) + b"\n")
    return digest.hexdigest()


def write_negatives(
    path: Path, source: PairSource, mined: Mined, description: NegativesDescription, vectors: str | None
) -> commit.Committed:
    """Writes a negatives folder, committed.

    Args:
      path: the folder to make.
      source: the corpus, whose rows the negatives are.
      mined: what to write.
      description: what it is.
      vectors: the identity of the committed vectors that were searched; None where there were none.

    Raises:
      UsageError: something is there already.
      MachineError: another writer is at work on it, or the disk is full.
    """
    with commit.draft(path, format=FORMAT, version=_WITHOUT_SCORES) as draft:
        with (draft.path / _FILE).open("w", encoding="utf-8", newline="\n") as file:
            for of_query in mined.negatives:
                line = {
                    "query_id": of_query.query_id,
                    "doc_ids": [source.docs[row].id for row in of_query.rows],
                    "scores": of_query.scores.tolist(),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        draft.counts |= mined.counts
        parents = ("corpus", "queries", "query_encoder", "document_encoder")
        draft.parents |= {name: getattr(description, name) for name in parents}
        draft.parents |= {} if vectors is None else {"vectors": vectors}
        draft.config = description
    return commit.open_committed(path, format=FORMAT, version=VERSION)


def write_scored_negatives(
    path: Path, lines: Sequence[Any], description: NegativesDescription, parent: Manifest
) -> commit.Committed:
    """Writes the lines of a negatives folder with a re-ranker's scores beside them, committed.

    Args:
      path: the folder to make.
      lines: dataclasses, one for each query.
      description: what it is; names the re-ranker.
      parent: of the folder without these scores.

    Raises:
      UsageError: something is there already.
      MachineError: another writer is at work on it, or the disk is full.
    """
    with commit.draft(path, format=FORMAT, version=VERSION) as draft:
        with (draft.path / _FILE).open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(json.dumps(typed_json.encode(line), ensure_ascii=False) + "\n")
        draft.counts |= parent.counts
        draft.parents |= parent.parents | {"negatives": parent.identity, "reranker": description.reranker}
        draft.config = description
    return commit.open_committed(path, format=FORMAT, version=VERSION)


def read_description(path: Path) -> NegativesDescription:
    """What a negatives folder says it is; every byte of it is checked.

    Raises:
      DataError: there is no such folder.
      VerificationError: it is damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check="full")
    return typed_json.decode(NegativesDescription, committed.manifest.config, f"{path}: config")


def negatives_file(path: Path) -> Path:
    """The file of hard negatives that a job names: itself, or the one in a negatives folder.

    Raises:
      DataError: there is neither.
    """
    file = path / _FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"hard_negatives: there is no file {str(path)!r}, nor a folder with a {_FILE}; `jaxscale mine` makes one"
        )
    return file


def require_same_corpus(path: Path, source: PairSource) -> None:
    """Refuses a negatives folder that was mined from other documents than those of `source`; a plain file says nothing.

    Raises:
      DataError: naming both corpora; or the folder is none of negatives.
      VerificationError: the folder is damaged.
    """
    if not path.is_dir():
        return
    mined_from, given = read_description(path).corpus, CorpusHash.of(source.docs).sha256
    if mined_from != given:
        raise DataError(
            f"{path}: its negatives are of the corpus {mined_from[:12]}, but data.folder has the corpus {given[:12]}; "
            "give the folder that they were mined from, or mine this one with `jaxscale mine`"
        )
