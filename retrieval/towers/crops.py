"""Queries cropped out of documents: spans of a passage's own tokens, drawn anew for every batch.

A tower that has only seen labelled questions knows little of words that none of them held. A span of a passage must
find its passage too, and every passage of the corpus has spans.

Reference: Izacard et al. 2021, Unsupervised Dense Information Retrieval with Contrastive Learning, section 3.1
(independent cropping, token deletion), https://arxiv.org/abs/2112.09118
"""

import dataclasses

import numpy as np
from jaxtyping import Int32

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from retrieval.towers.encoder import EncoderConfig
from retrieval.towers.tokens import TokenRow

# A crop has between a quarter of the tokens that a query may have and all of them, before some are dropped.
_SHORTEST = 4
_DROP_RATE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryCrops:
    """Makes queries out of documents.

    Attributes:
      document_frame: how many tokens stand before and after a document's own text: special tokens, a prefix.
      opening: tokens that stand before the text of a query.
      closing: tokens that stand after it.
      max_tokens: the most tokens of a document that one crop holds.
    """

    document_frame: tuple[int, int]
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    max_tokens: int

    def has_text(self, document: TokenRow) -> bool:
        """Whether a document has a token besides those that stand around its text."""
        return len(document) > sum(self.document_frame)

    def crop(self, document: Int32[np.ndarray, "S"], rng: np.random.Generator) -> Int32[np.ndarray, "_"]:
        """A query out of one document's tokens: a span of them, each dropped now and then, at least one left.

        >>> crops = QueryCrops(document_frame=(1, 1), opening=(2,), closing=(3,), max_tokens=4)
        >>> query = crops.crop(np.array([2, 10, 11, 12, 13, 14, 3], np.int32), np.random.default_rng(0))
        >>> query[0].item(), query[-1].item(), set(query[1:-1].tolist()) <= {10, 11, 12, 13, 14}
        (2, 3, True)
        """
        before, after = self.document_frame
        text = document[before : len(document) - after]
        longest = min(self.max_tokens, len(text))
        length = rng.integers(min(-(-self.max_tokens // _SHORTEST), longest), longest + 1)
        first = rng.integers(0, len(text) - length + 1)
        span = text[first : first + length]
        kept = span[rng.random(length) >= _DROP_RATE]
        return np.concatenate([self.opening, kept if len(kept) else span, self.closing]).astype(np.int32)


def make_crops(tokenizer: Tokenizer, query: EncoderConfig, document: EncoderConfig) -> QueryCrops:
    """Crops of the document encoder's tokens, framed as the query encoder frames its own.

    Args:
      tokenizer: of both.
      query: says the prefix of queries and how long they may be.
      document: says the prefix of documents.

    Raises:
      UsageError: the prefix of queries leaves no room for a text.
    """
    query_prefix, document_prefix = (_prefix_ids(tokenizer, config) for config in (query, document))
    opening = (*tokenizer.opening_ids, *query_prefix)
    max_tokens = query.max_length - len(opening) - len(tokenizer.closing_ids)
    if max_tokens < 1:
        raise UsageError(
            f"query_prefix={query.prefix!r} and special tokens fill all {query.max_length} tokens of a query; "
            "use longer query_buckets or a shorter prefix"
        )
    return QueryCrops(
        document_frame=(len(tokenizer.opening_ids) + len(document_prefix), len(tokenizer.closing_ids)),
        opening=opening,
        closing=tuple(tokenizer.closing_ids),
        max_tokens=max_tokens,
    )


def _prefix_ids(tokenizer: Tokenizer, config: EncoderConfig) -> list[int]:
    """The tokens of an encoder's prefix, without special ones."""
    if not config.prefix:
        return []
    ids = tokenizer.encode_batch([config.prefix], config.max_length).ids[0].tolist()
    return ids[len(tokenizer.opening_ids) : len(ids) - len(tokenizer.closing_ids)]
