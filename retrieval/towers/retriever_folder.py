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
from retrieval.towers.encoder import SIDES, Encoder, EncoderConfig, Side
from retrieval.towers.fingerprint import encoder_identity

FORMAT = "jaxscale.retriever"
VERSION = 2
_TOKENIZER, _QUERY_TOKENIZER = "tokenizer.json", "query_tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTowers:
    """The two encoders of a retriever and the space they speak.

    Attributes:
      query: the encoder of queries.
      document: the encoder of documents.
      shared: whether both use the same weights.
      contract: the space; both encoders are the last of their sides that it lists.
    """

    query: Encoder
    document: Encoder
    shared: bool
    contract: EmbeddingContract

    @property
    def one_tokenizer(self) -> bool:
        """Whether both encoders have the same tokenizer."""
        return self.query.tokenizer.fingerprint == self.document.tokenizer.fingerprint

    def encoder(self, side: Side) -> Encoder:
        """The encoder of one side."""
        return self.query if side == "query" else self.document

    def identity(self, side: Side) -> EncoderIdentity:
        """Who the encoder of one side is: what `EmbeddingContract.require_speaks` of a vector set is asked with.

        Raises:
          DataError: the contract lists none.
        """
        identity = self.contract.last_of(side)
        if identity is None:
            raise DataError(f"the contract of the space {self.contract.space[:12]} lists no {side} encoder")
        return identity


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
    _require_one_kind(query, document)
    contract = found_space(
        num_dims=document.config.num_dims,
        normalized=document.config.normalize,
        score=score,
        encoders=(encoder_identity(query, "query"), encoder_identity(document, "document")),
    )
    return LoadedTowers(query=query, document=document, shared=shared, contract=contract)


def with_query_tower(towers: LoadedTowers, query: Encoder) -> LoadedTowers:
    """A retriever with another query encoder, which joins its space; the document encoder is as it was.

    Args:
      towers: the retriever.
      query: an encoder that was made for the retriever's space.

    Raises:
      DataError: it does not give vectors of the space's kind.
    """
    _require_one_kind(query, towers.document)
    contract = towers.contract.joined_by(encoder_identity(query, "query"))
    return LoadedTowers(query=query, document=towers.document, shared=False, contract=contract)


def _require_one_kind(query: Encoder, document: Encoder) -> None:
    for name, got, expected in (
        ("dims", query.config.num_dims, document.config.num_dims),
        ("normalisation", query.config.normalize, document.config.normalize),
    ):
        if got != expected:
            raise DataError(f"the query encoder's {name} is {got}, the document encoder's {expected}; both must agree")


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
    # A reader of version 1 would take the first encoder of each side for the folder's, and the one tokenizer for both.
    version = 1 if towers.one_tokenizer and len(towers.contract.encoders) == 2 else VERSION
    with commit.draft(path, format=FORMAT, version=version, replace=replace) as draft:
        text = json.dumps(typed_json.encode(described), indent=2, sort_keys=True)
        (draft.path / "retriever.json").write_text(text + "\n", encoding="utf-8")
        towers.document.tokenizer.save(draft.path / _TOKENIZER)
        if not towers.one_tokenizer:
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
    tokenizers = dict.fromkeys(SIDES, Tokenizer.load(committed.path / _TOKENIZER))
    if _QUERY_TOKENIZER in committed.manifest.files:
        tokenizers["query"] = Tokenizer.load(committed.path / _QUERY_TOKENIZER)
    params = arrays.read_tree(committed.path / "params")

    def encoder(side: Side, config: EncoderConfig) -> Encoder:
        return Encoder(config=config, params=params["shared" if described.shared else side], tokenizer=tokenizers[side])

    return LoadedTowers(
        query=encoder("query", described.query),
        document=encoder("document", described.document),
        shared=described.shared,
        contract=described.contract,
    )
