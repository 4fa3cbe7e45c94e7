"""InfoNCE: each query's own document against every other document of the global batch.

In-batch negatives are gathered across the whole mesh: under jit the batch's leading dim lies over the mesh, and the one
product `queries @ documents.T` over the global batch makes the compiler gather the documents wherever they are. Query i
belongs to document i of the *global* batch, never of a device's share, so labels can't shift.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxscale.errors import UsageError

# Stands where there is no document: in the ids of known positives, padded to one width.
NO_DOCUMENT = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """The contrastive loss.

    Attributes:
      temperature: what scores are divided by before the softmax; the starting value where it is learned.
      learn_temperature: whether its logarithm is a parameter.
      symmetric: adds the loss of finding each document's query among the batch's queries, and halves the sum.
      mask_same_document: a document that stands in the batch twice is no negative of its own query.
      mask_known_positives: a document of the batch that is another relevant one of a query is no negative of it.
    """

    temperature: float = 0.05
    learn_temperature: bool = False
    symmetric: bool = False
    mask_same_document: bool = True
    mask_known_positives: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"temperature={self.temperature} must be above 0; 0.05 is usual for cosine scores")


def info_nce(
    queries: Float[Array, "B E"],
    documents: Float[Array, "B P E"],
    temperature: Float[Array, ""],
    excluded: Bool[Array, "B B P"],
    *,
    symmetric: bool,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """The mean over queries of `-log softmax(q . d / t)` at the query's own document.

    With scores `s[i, j, p] = q[i] . d[j, p] / t` over the P documents that each query j brings (the first is its own,
    the others are its hard negatives), the loss of query i is

        logsumexp over (j, p) not excluded of s[i, j, p]  -  s[i, i, 0]

    and, where symmetric, the mean of that and of `logsumexp over j of s[j, i, 0]  -  s[i, i, 0]`.

    Args:
      queries: one vector per query of the global batch.
      documents: its P documents' vectors.
      temperature: a positive scalar.
      excluded: True where document (j, p) is no negative of query i; `excluded[i, i, 0]` is False.
      symmetric: whether documents look for their queries too.

    Returns:
      The loss and, per query, 1.0 where its own document scored highest; float32, accumulated in float32.

    Reference:
      van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding, equation 4;
      in-batch negatives: Karpukhin et al. 2020, Dense Passage Retrieval, section 3.2.
    """
    num_queries, num_passages, _ = documents.shape
    flat = documents.reshape(num_queries * num_passages, -1)
    # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
    scores = jnp.matmul(queries, flat.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    logits = jnp.where(excluded.reshape(num_queries, -1), -jnp.inf, scores / temperature)
    own = jnp.diagonal(logits.reshape(num_queries, num_queries, num_passages)[:, :, 0])
    losses = jax.nn.logsumexp(logits, axis=1) - own
    hits = (own >= jnp.max(logits, axis=1)).astype(jnp.float32)
    if symmetric:
        over_queries = logits.reshape(num_queries, num_queries, num_passages)[:, :, 0]
        losses = 0.5 * (losses + jax.nn.logsumexp(over_queries, axis=0) - own)
    return jnp.mean(losses), hits


def excluded_documents(
    document_ids: Int[Array, "B P"],
    known_positives: Int[Array, "B M"],
    *,
    mask_same_document: bool,
    mask_known_positives: bool,
) -> Bool[Array, "B B P"]:
    """Which documents of the batch are no negatives of which query.

    Args:
      document_ids: the P documents of each query, its own first.
      known_positives: every relevant document of each query, padded with `NO_DOCUMENT`.
      mask_same_document: exclude documents with the id of the query's own one.
      mask_known_positives: exclude documents that are relevant to the query.

    Returns:
      True at [i, j, p] where document (j, p) is excluded for query i; False at every [i, i, 0].

    >>> ids = jnp.array([[7], [8], [7]])
    >>> known = jnp.array([[7, 8], [8, -1], [7, -1]])
    >>> excluded_documents(ids, known, mask_same_document=True, mask_known_positives=True)[:, :, 0].astype(int).tolist()
    [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    """
    num_queries, num_passages = document_ids.shape
    excluded = jnp.zeros((num_queries, num_queries, num_passages), bool)
    if mask_same_document:
        excluded = excluded | (document_ids[None, :, :] == document_ids[:, :1, None])
    if mask_known_positives:
        matches = document_ids[None, :, :, None] == known_positives[:, None, None, :]
        excluded = excluded | jnp.any(matches, axis=-1)
    own = (jnp.eye(num_queries, dtype=bool))[:, :, None] & (jnp.arange(num_passages) == 0)[None, None, :]
    return excluded & ~own
