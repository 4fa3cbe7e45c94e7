"""InfoNCE: each query's own document against every other document of the global batch.

Under jit the batch's leading dim lies over the mesh, and the one product `queries @ documents.T` over the global batch
makes the compiler gather one side of it wherever it is; `retrieval.towers.ring` passes it round instead. Query i
belongs to document i of the *global* batch, never of a device's share, so labels can't shift.
"""

import dataclasses
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale import typed_json
from jaxscale.errors import UsageError
from retrieval.towers.in_batch import Asked, Offered, Positives, Relations, relations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """The contrastive loss.

    Attributes:
      temperature: what scores are divided by before the softmax; the starting value where it is learned.
      learn_temperature: whether its logarithm is a parameter.
      symmetric: adds the loss of finding each document's query among the batch's queries, and halves the sum.
      mask_same_document: a document that stands in the batch twice is no negative of its own query.
      mask_known_positives: a document of the batch that is another relevant one of a query is no negative of it.
      positives: what a query is to find: its `own` document, or `all` of the batch that are known to be relevant.
      matryoshka_dims: leading dims of the vectors that are trained as vectors of their own, rising; the last is all of
        them. Empty: whole vectors alone.
      matryoshka_weights: of the loss of each of these in the sum; empty: 1 each.
      cache_chunks: parts in which a batch is encoded one after the other, and again in the backward pass, so that
        activations of one part alone are kept.
      negatives: how queries and documents of different devices meet: all at once (`gather`), or the queries passed from
        device to device, with the scores of two devices' examples at a time (`ring`).
      distill: what of a re-ranker's scores is learned too, which the hard negatives must carry: their differences
        (`margin_mse`), or their softmax (`kl`); see `retrieval.towers.taught`.
      distill_weight: of that loss, which is added to the contrastive one.
      distill_temperature: what the re-ranker's scores are divided by first; the towers' are divided by `temperature`.
    """

    temperature: float = 0.05
    learn_temperature: bool = False
    symmetric: bool = False
    mask_same_document: bool = True
    mask_known_positives: bool = True
    positives: Positives = typed_json.added("own")  # noqa: RUF009 (a field of a frozen class)
    matryoshka_dims: tuple[int, ...] = typed_json.added(())
    matryoshka_weights: tuple[float, ...] = typed_json.added(())
    cache_chunks: int = typed_json.added(1)
    negatives: Literal["gather", "ring"] = typed_json.added("gather")
    distill: Literal["none", "margin_mse", "kl"] = typed_json.added("none")
    distill_weight: float = typed_json.added(1.0)
    distill_temperature: float = typed_json.added(1.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"temperature={self.temperature} must be above 0; 0.05 is usual for cosine scores")
        for name in ("distill_weight", "distill_temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name}={getattr(self, name)} must be above 0; use distill=none for no such loss")
        if self.cache_chunks < 1:
            raise UsageError(f"cache_chunks={self.cache_chunks} must be at least 1")
        if any(later <= earlier for earlier, later in itertools.pairwise((0, *self.matryoshka_dims))):
            raise UsageError(f"matryoshka_dims={self.matryoshka_dims} must be at least 1, each above the one before")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka_dims):
            raise UsageError(
                f"matryoshka_weights={self.matryoshka_weights} must be {len(self.matryoshka_dims)}, one for each of "
                f"matryoshka_dims={self.matryoshka_dims}, or none"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in self.matryoshka_weights):
            raise UsageError(f"matryoshka_weights={self.matryoshka_weights} must all be above 0")

    def prefixes(self, num_dims: int) -> tuple[tuple[int, float], ...]:
        """The leading dims that are trained, each with the weight of its loss; the last pair is the whole vector's.

        Args:
          num_dims: of the vectors (E).

        Raises:
          UsageError: `matryoshka_dims` does not end with `num_dims`.

        >>> Contrastive(matryoshka_dims=(4, 8), matryoshka_weights=(0.5, 1.0)).prefixes(8)
        ((4, 0.5), (8, 1.0))
        """
        dims = self.matryoshka_dims or (num_dims,)
        if dims[-1] > num_dims:
            raise UsageError(
                f"matryoshka_dims={dims} goes beyond the vectors, which have {num_dims} dims; end it there"
            )
        if dims[-1] < num_dims:
            raise UsageError(
                f"matryoshka_dims={dims} must end with {num_dims}, all dims of the vectors: what is in none of them "
                "would never be trained"
            )
        return tuple(zip(dims, self.matryoshka_weights or (1.0,) * len(dims), strict=True))

    def relations(self, asked: Asked, offered: Offered) -> Relations:
        """What documents are to queries; see `retrieval.towers.in_batch.relations`."""
        return relations(
            asked,
            offered,
            positives=self.positives,
            mask_same_document=self.mask_same_document,
            mask_known_positives=self.mask_known_positives,
        )


def scores_of(queries: Float[Array, "Q E"], documents: Float[Array, "N P E"]) -> Float[Array, "Q N P"]:
    """The product of every query with every document, float32."""
    flat = documents.reshape(-1, documents.shape[-1])
    # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
    scores = jnp.matmul(queries, flat.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return scores.reshape(queries.shape[0], *documents.shape[:2])


def info_nce(
    queries: Float[Array, "B E"],
    documents: Float[Array, "B P E"],
    temperature: Float[Array, ""],
    related: Relations,
    *,
    symmetric: bool,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """The mean over queries of `-log softmax(q . d / t)` at each query's positives.

    With scores `s[i, j, p] = q[i] . d[j, p] / t` over the P documents that each query j brings (the first is its own,
    the others are its hard negatives), the loss of query i is

        logsumexp over (j, p) not excluded of s[i, j, p]  -  mean over (j, p) positive of s[i, j, p]

    and, where symmetric, the mean of that and of what document (i, 0) loses among the queries, which is
    `logsumexp over j not excluded of s[j, i, 0]  -  mean over j positive of s[j, i, 0]`. So each of several positives
    is found among all others, the other positives too.

    Args:
      queries: one vector per query of the global batch.
      documents: its P documents' vectors.
      temperature: a positive scalar.
      related: what every document is to every query.
      symmetric: whether documents look for their queries too.

    Returns:
      The loss and, per query, 1.0 where a positive scored highest; float32, accumulated in float32.

    Reference:
      van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding, equation 4;
      in-batch negatives: Karpukhin et al. 2020, Dense Passage Retrieval, section 3.2;
      several positives: Khosla et al. 2020, Supervised Contrastive Learning, equation 2 (`out`).
    """
    logits = jnp.where(related.excluded, -jnp.inf, scores_of(queries, documents) / temperature)
    losses = _cross_entropy(logits, related.positive, (1, 2))
    best_positive = jnp.max(jnp.where(related.positive, logits, -jnp.inf), axis=(1, 2))
    hits = (best_positive >= jnp.max(logits, axis=(1, 2))).astype(jnp.float32)
    if symmetric:
        losses = 0.5 * (losses + _cross_entropy(logits[:, :, 0], related.positive[:, :, 0], (0,)))
    return jnp.mean(losses), hits


def _cross_entropy(logits: Float[Array, "*dims"], positive: Array, axes: tuple[int, ...]) -> Float[Array, "B"]:
    num_positives = jnp.sum(positive, axis=axes, dtype=jnp.float32)
    return jax.nn.logsumexp(logits, axis=axes) - jnp.sum(jnp.where(positive, logits, 0.0), axis=axes) / num_positives
