"""What is in a token dataset: lengths of documents, how full packed rows are, how often each id occurs."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from jaxscale.data.token_dataset import TokenDataset

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

# Tokens looked at in one piece, so that a dataset larger than memory can be counted.
_CHUNK_TOKENS = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFill:
    """The packed rows of one length.

    Attributes:
      sequence_length: tokens that a row can hold.
      num_rows: how many there are.
      num_pieces: whole documents and pieces of long ones, in all rows.
      fill: the share of all places that holds a token.
    """

    sequence_length: int
    num_rows: int
    num_pieces: int
    fill: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyUse:
    """How often the ids occur.

    Attributes:
      num_used: ids that occur at all.
      share_of_commonest: of all tokens, the share of the 100 commonest ids.
      entropy_bits: of the distribution of ids, per token: the loss of a model that knows nothing but their frequencies.
    """

    num_used: int
    share_of_commonest: float
    entropy_bits: float


def document_length_quantiles(dataset: TokenDataset) -> dict[float, int]:
    """The lengths, in tokens, that a share of `QUANTILES` of all documents does not exceed; exact.

    Args:
      dataset: its documents' offsets are read, no token is.
    """
    longest = max(shard.counts.longest_tokens for shard in dataset.shards)
    counts = np.zeros(longest + 1, np.int64)
    for shard in dataset.shards:
        counts += np.bincount(np.diff(shard.offsets.astype(np.int64)), minlength=longest + 1)
    up_to = np.cumsum(counts)
    wanted = np.ceil(np.array(QUANTILES) * up_to[-1]).astype(np.int64)
    return dict(zip(QUANTILES, np.searchsorted(up_to, wanted).tolist(), strict=True))


def row_fills(dataset: TokenDataset) -> list[RowFill]:
    """How full the packed rows are, for each length that the dataset has packs for.

    Args:
      dataset: its packs are read, no token is.
    """
    fills = []
    for length in dataset.config.pack_lengths:
        packs = [shard.packs(length) for shard in dataset.shards]
        num_rows = sum(len(pack.row_ends) for pack in packs)
        num_tokens = sum(int(pack.lengths.sum(dtype=np.int64)) for pack in packs)
        fills.append(
            RowFill(
                sequence_length=length,
                num_rows=num_rows,
                num_pieces=sum(len(pack.lengths) for pack in packs),
                fill=num_tokens / (num_rows * length),
            )
        )
    return fills


def vocabulary_use(dataset: TokenDataset) -> VocabularyUse:
    """How often the ids occur; reads every token.

    Args:
      dataset: is read in pieces of 16 million tokens.
    """
    counts = np.zeros(dataset.vocab_size, np.int64)
    for tokens in _chunks(dataset):
        counts += np.bincount(tokens, minlength=dataset.vocab_size)
    shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
    return VocabularyUse(
        num_used=len(shares),
        share_of_commonest=float(shares[:100].sum()),
        entropy_bits=float(-(shares * np.log2(shares)).sum()),
    )


def _chunks(dataset: TokenDataset) -> Iterator[Int64[np.ndarray, " T"]]:
    for shard in dataset.shards:
        for start in range(0, len(shard.tokens), _CHUNK_TOKENS):
            yield shard.tokens[start : start + _CHUNK_TOKENS].astype(np.int64)
