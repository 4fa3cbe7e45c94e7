"""The folder a retriever is kept in: two towers, their tokenizers and their embedding contract.

The format, `jaxscale.retriever` version 2, is written down in docs/formats/retriever-folder.md.
"""

import dataclasses
import json
from pathlib import Path

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError
from jaxscale.nn.functional import Params
from jaxscale.store import arrays, commit
from jaxscale.store.checksums import Check
from retrieval.contract import EmbeddingContract, EncoderIdentity, Score, found_space
from retrieval.towers.encoder import Encoder, EncoderConfig, Side
from retrieval.towers.fingerprint import encoder_identity

FORMAT = "jaxscale.retriever"
VERSION = 2
# Says all that a retriever with one tokenizer is, so that those are written as ever.
_VERSION_WITH_ONE_TOKENIZER = 1
_TOKENIZER, _QUERY_TOKENIZER = "tokenizer.json", "query_tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTowers:
    """The two encoders of a retriever and the space they speak.

    Attributes:
      query: the encoder of queries.
      document: the encoder of documents.
      shared: whether both use the same weights.
      contract: the space; it lists both encoders.
    """

    query: Encoder
    document: Encoder
    shared: bool
    contract: EmbeddingContract

    def encoder(self, side: Side) -> Encoder:
        """The encoder of one side."""
        return self.query if side == "query" else self.document

    def identity(self, side: Side) -> EncoderIdentity:
        """Who the encoder of one side is: what `EmbeddingContract.require_speaks` of a vector set is asked with."""
        return next(e for e in self.contract.encoders if e.side == side)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RetrieverJson:
    """The file retriever.json."""

    query: EncoderConfig
    document: EncoderConfig
    shared: bool
    contract: EmbeddingContract


def join_towers(*, query: Encoder, document: Encoder, shared: bool, score: Score) -> LoadedTowers:
    """Two encoders trained together, with the contract of the new space that they found.

    Args:
      query: the encoder of queries.
      document: the encoder of documents.
      shared: whether both use the same weights.
      score: how their vectors are compared.

    Raises:
      DataError: they don't give vectors of one kind.
    """
    for name, got, expected in (
        ("dims", query.config.num_dims, document.config.num_dims),
        ("normalisation", query.config.normalize, document.config.normalize),
    ):
        if got != expected:
            raise DataError(f"the query encoder's {name} is {got}, the document encoder's {expected}; both must agree")
    contract = found_space(
        num_dims=document.config.num_dims,
        normalized=document.config.normalize,
        score=score,
        encoders=(encoder_identity(query, "query"), encoder_identity(document, "document")),
    )
    return LoadedTowers(query=query, document=document, shared=shared, contract=contract)


def save_retriever(path: Path, towers: LoadedTowers, *, replace: bool = False) -> None:
    """Writes a retriever folder, committed.

    Args:
      path: the folder to write.
      towers: what to write; the params' leaves are host or device arrays.
      replace: whether a retriever folder that is there already is replaced, in one step.

    Raises:
      UsageError: something is there already.
      MachineError: another writer is at work on it, or the disk is full.
    """
    described = _RetrieverJson(
        query=towers.query.config, document=towers.document.config, shared=towers.shared, contract=towers.contract
    )
    params: dict[str, Params] = (
        {"shared": towers.document.params}
        if towers.shared
        else {"query": towers.query.params, "document": towers.document.params}
    )
    one_tokenizer = towers.query.tokenizer.fingerprint == towers.document.tokenizer.fingerprint
    version = _VERSION_WITH_ONE_TOKENIZER if one_tokenizer else VERSION
    with commit.draft(path, format=FORMAT, version=version, replace=replace) as draft:
        text = json.dumps(typed_json.encode(described), indent=2, sort_keys=True)
        (draft.path / "retriever.json").write_text(text + "\n", encoding="utf-8")
        towers.document.tokenizer.save(draft.path / _TOKENIZER)
        if not one_tokenizer:
            towers.query.tokenizer.save(draft.path / _QUERY_TOKENIZER)
        (draft.path / "params").mkdir()
        arrays.write_tree(draft.path / "params", params)
        draft.config = described


def read_retriever(path: Path, *, check: Check = "full") -> LoadedTowers:
    """Reads a folder written by `save_retriever`.

    Args:
      path: the folder.
      check: `full` compares every byte with the manifest before it is used, `sizes` names and sizes only.

    Raises:
      DataError: there is no retriever folder.
      VerificationError: it is damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    described = typed_json.decode(
        _RetrieverJson, json.loads((committed.path / "retriever.json").read_text(encoding="utf-8")), "retriever.json"
    )
    tokenizer = query_tokenizer = Tokenizer.load(committed.path / _TOKENIZER)
    if (committed.path / _QUERY_TOKENIZER).is_file():
        query_tokenizer = Tokenizer.load(committed.path / _QUERY_TOKENIZER)
    params = arrays.read_tree(committed.path / "params")

    def encoder(side: Side, config: EncoderConfig) -> Encoder:
        return Encoder(
            config=config,
            params=params["shared" if described.shared else side],
            tokenizer=query_tokenizer if side == "query" else tokenizer,
        )

    return LoadedTowers(
        query=encoder("query", described.query),
        document=encoder("document", described.document),
        shared=described.shared,
        contract=described.contract,
    )
