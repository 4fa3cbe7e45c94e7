"""What every document of a batch is to every query of it: a positive, a negative, or neither."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Stands where there is no document: in the ids of known positives, padded to one width.
NO_DOCUMENT = -1

# Which documents of the batch a query is to find: its `own` alone, or `all` that are known to be relevant to it.
Positives = Literal["own", "all"]


class Asked(NamedTuple):
    """Q queries of a batch, their vectors aside.

    Attributes:
      numbers: their places in the whole batch.
      own_ids: the document of each, a row of the corpus.
      own_groups: the group of near-duplicates that this document is of; None where there are no groups.
      known_positives: every relevant document of each, padded with `NO_DOCUMENT`.
    """

    numbers: Int[Array, "Q"]
    own_ids: Int[Array, "Q"]
    own_groups: Int[Array, "Q"] | None
    known_positives: Int[Array, "Q M"]


class Offered(NamedTuple):
    """The P documents that each of N queries brings, their vectors aside; the first is the query's own.

    Attributes:
      numbers: the places of these queries in the whole batch.
      ids: the documents, rows of the corpus.
      groups: of near-duplicates; None where there are none.
    """

    numbers: Int[Array, "N"]
    ids: Int[Array, "N P"]
    groups: Int[Array, "N P"] | None


class Relations(NamedTuple):
    """What document (j, p) is to query i; one that is neither excluded nor positive is a negative.

    Attributes:
      excluded: it takes no part in the query's loss, nor the query in its own.
      positive: the query is to find it.
    """

    excluded: Bool[Array, "Q N P"]
    positive: Bool[Array, "Q N P"]


def parts_of(batch: Mapping[str, jax.Array]) -> tuple[Asked, Offered]:
    """The queries and the documents of a batch that `PairBatches.batch` made; its groups only where it has some."""
    ids, groups = batch["document_ids"], batch.get("document_groups")
    numbers = jnp.arange(ids.shape[0], dtype=jnp.int32)
    own_groups = None if groups is None else groups[:, 0]
    asked = Asked(numbers=numbers, own_ids=ids[:, 0], own_groups=own_groups, known_positives=batch["known_positives"])
    return asked, Offered(numbers=numbers, ids=ids, groups=groups)


def relations(
    asked: Asked, offered: Offered, *, positives: Positives, mask_same_document: bool, mask_known_positives: bool
) -> Relations:
    """What each of the offered documents is to each of the queries.

    A query's own document is a positive always, and never excluded. With `positives="all"` so is every place of the
    batch that holds a document known to be relevant to it.

    Args:
      asked: the queries.
      offered: the documents, of the same batch or of a part of it.
      positives: which documents a query is to find.
      mask_same_document: exclude others with the id of the query's own one.
      mask_known_positives: exclude others that are relevant to the query.

    >>> ids, known = jnp.array([[7], [8], [7]]), jnp.array([[7, 8], [8, -1], [7, -1]])
    >>> asked, offered = parts_of({"document_ids": ids, "known_positives": known})
    >>> masks = {"mask_same_document": True, "mask_known_positives": True}
    >>> relations(asked, offered, positives="own", **masks).excluded[:, :, 0].astype(int).tolist()
    [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    >>> relations(asked, offered, positives="all", **masks).positive[:, :, 0].astype(int).tolist()
    [[1, 1, 1], [0, 1, 0], [1, 0, 1]]
    """
    ids, is_first = offered.ids, jnp.arange(offered.ids.shape[1], dtype=jnp.int32) == 0
    positive = (asked.numbers[:, None, None] == offered.numbers[None, :, None]) & is_first[None, None, :]
    excluded = jnp.zeros(positive.shape, bool)
    if mask_same_document:
        excluded = excluded | (ids[None, :, :] == asked.own_ids[:, None, None])
    if mask_known_positives or positives == "all":
        relevant = jnp.any(ids[None, :, :, None] == asked.known_positives[:, None, None, :], axis=-1)
        excluded, positive = (excluded, positive | relevant) if positives == "all" else (excluded | relevant, positive)
    if offered.groups is not None and asked.own_groups is not None:
        excluded = excluded | (offered.groups[None, :, :] == asked.own_groups[:, None, None])
    return Relations(excluded=excluded & ~positive, positive=positive)
