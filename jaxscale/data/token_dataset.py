"""A token dataset: the ids of a corpus's documents in files that are mapped, not read.

The format is written down in docs/formats/token-dataset.md.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt, UInt64

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, VerificationError
from jaxscale.store.checksums import Check
from jaxscale.store.commit import Committed, open_committed

FORMAT = "jaxscale.tokens"
VERSION = 1
TOKENIZER_FILE = "tokenizer.json"

# Ids below this fit the narrower of the two widths.
_NARROW = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """What is in a shard.

    Attributes:
      source: the name of the file that it was made from.
      source_sha256: of that file's bytes.
      num_documents: those with a text.
      num_empty: documents without any, left out.
      num_tokens: with the one that ends each document.
      num_bytes: of the texts in UTF-8.
      longest_tokens: of the longest document.
    """

    source: str
    source_sha256: str
    num_documents: int
    num_empty: int
    num_tokens: int
    num_bytes: int
    longest_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDatasetConfig:
    """What fixes a token dataset besides its texts.

    Attributes:
      tokenizer_sha256: the tokenizer's fingerprint.
      vocab_size: ids are below it.
      end_id: the token that ends every document.
      pack_lengths: the row lengths, in tokens, for which it holds packs, ascending.
    """

    tokenizer_sha256: str
    vocab_size: int
    end_id: int
    pack_lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packs:
    """How a shard's documents share rows of one length; a row has one or more pieces of documents.

    Attributes:
      row_ends: row r has the pieces row_ends[r - 1] .. row_ends[r] - 1, the first row those from 0.
      starts: of each piece, the place of its first token in the shard.
      lengths: of each piece, its tokens.
    """

    row_ends: UInt64[np.ndarray, " R"]
    starts: UInt64[np.ndarray, " P"]
    lengths: UInt[np.ndarray, " P"]


class TokenShard:
    """One shard of a dataset: its ids, where its documents begin, its packs; all of them mapped."""

    def __init__(self, folder: Path, number: int, counts: ShardCounts, vocab_size: int) -> None:
        """Maps the shard's files.

        Args:
          folder: of the dataset.
          number: of the shard.
          counts: what is in it.
          vocab_size: which tells the width of ids.
        """
        self.counts = counts
        self._folder, self._name = folder, shard_name(number)
        self.tokens: UInt[np.ndarray, " T"] = self._map("tokens", id_dtype(vocab_size))
        # Document d has the tokens offsets[d] .. offsets[d + 1] - 1.
        self.offsets: UInt64[np.ndarray, " D+1"] = self._map("offsets", np.dtype("<u8"))
        if len(self.tokens) != counts.num_tokens or len(self.offsets) != counts.num_documents + 1:
            raise VerificationError(
                f"{folder}: {self._name} has {len(self.tokens)} tokens of {len(self.offsets) - 1} documents, expected "
                f"{counts.num_tokens} of {counts.num_documents}; make the dataset again"
            )

    def packs(self, length: int) -> Packs:
        """The packs for rows of `length` tokens; the dataset has them."""
        return Packs(
            row_ends=self._map(f"packs-{length}.row_ends", np.dtype("<u8")),
            starts=self._map(f"packs-{length}.starts", np.dtype("<u8")),
            lengths=self._map(f"packs-{length}.lengths", np.dtype("<u4")),
        )

    def _map(self, part: str, dtype: np.dtype[Any]) -> Any:
        return np.memmap(self._folder / f"{self._name}.{part}", dtype, mode="r")


class TokenDataset:
    """A committed token dataset that was opened.

    Attributes:
      path: its folder.
      id: names its content: the identity of its manifest.
      config: what fixes it.
      shards: its shards, in order.
    """

    def __init__(self, committed: Committed) -> None:
        """Maps every shard of a dataset that `open` opened."""
        self.path, self.id = committed.path, committed.manifest.identity
        where = str(committed.path)
        self.config = typed_json.decode(TokenDatasetConfig, committed.manifest.config["settings"], where)
        counts = typed_json.decode(tuple[ShardCounts, ...], committed.manifest.config["shards"], where)
        self.shards = tuple(
            TokenShard(committed.path, number, one, self.config.vocab_size) for number, one in enumerate(counts)
        )

    @classmethod
    def open(cls, path: Path | str, *, check: Check = "sizes") -> "TokenDataset":
        """Opens the dataset at `path`.

        Args:
          path: its folder.
          check: `sizes` compares names and sizes only, `full` every byte.

        Raises:
          DataError: there is none.
          VerificationError: it is damaged.
        """
        return cls(open_committed(path, format=FORMAT, version=VERSION, check=check))

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.config.vocab_size

    @property
    def tokenizer_sha256(self) -> str:
        """The tokenizer's fingerprint."""
        return self.config.tokenizer_sha256

    @property
    def num_tokens(self) -> int:
        """With the one that ends each document."""
        return sum(shard.counts.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Those with a text."""
        return sum(shard.counts.num_documents for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Of all texts in UTF-8."""
        return sum(shard.counts.num_bytes for shard in self.shards)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The one that made it."""
        return Tokenizer.load(self.path / TOKENIZER_FILE)

    def document(self, number: int) -> Int64[np.ndarray, " T"]:
        """The ids of a document, its end token included.

        Args:
          number: 0 for the first of the first shard.

        Raises:
          DataError: there are not so many.
        """
        for shard in self.shards:
            if number < shard.counts.num_documents:
                return shard.tokens[int(shard.offsets[number]) : int(shard.offsets[number + 1])].astype(np.int64)
            number -= shard.counts.num_documents
        raise DataError(f"{self.path}: holds {self.num_documents} documents; there is none beyond")


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of ids on disk: little-endian, 2 bytes where every id fits, else 4.

    >>> id_dtype(65_536).itemsize, id_dtype(65_537).itemsize
    (2, 4)
    """
    return np.dtype("<u2" if vocab_size <= _NARROW else "<u4")


def shard_name(number: int) -> str:
    """What the names of a shard's files begin with.

    >>> shard_name(3)
    'shard-00003'
    """
    return f"shard-{number:05d}"
