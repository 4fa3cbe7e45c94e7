"""What a dual tower learns of a re-ranker: its scores of each query's own documents, relative to one another."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def taught_loss(
    queries: Float[Array, "B E"],
    documents: Float[Array, "B P E"],
    temperature: Float[Array, ""],
    taught: Float[Array, "B P"],
    *,
    kind: Literal["margin_mse", "kl"],
) -> Float32[Array, ""]:
    """The mean over queries of how far the towers' scores are from the re-ranker's, within each query's documents.

    With s[p] = q . d[p] / t, of P documents of which the first is relevant, and the re-ranker's scores r[p],

        margin_mse:  mean over p > 0 of ((s[0] - s[p]) - (r[0] - r[p]))^2
        kl:          sum over p of softmax(r)[p] (log softmax(r)[p] - log softmax(s)[p])

    Documents of other queries take no part: of them the re-ranker has said nothing.

    Args:
      queries: one vector per query.
      documents: its documents' vectors.
      temperature: a positive scalar.
      taught: the re-ranker's scores of the same documents.
      kind: which distance.

    Reference:
      margin_mse: Hofstaetter et al. 2020, https://arxiv.org/abs/2010.02666;
      kl: Ren et al. 2021, RocketQAv2, section 3.2, https://arxiv.org/abs/2110.07367.

    >>> queries, documents = jnp.ones((1, 2)), jnp.array([[[1.0, 1.0], [0.0, 1.0]]])
    >>> [taught_loss(queries, documents, jnp.float32(1), jnp.array([[3.0, 0.0]]), kind="margin_mse").item()]
    [4.0]
    """
    # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
    scores = jnp.einsum("be,bpe->bp", queries, documents, precision=jax.lax.Precision.HIGHEST) / temperature
    if kind == "margin_mse":
        ours, theirs = (of[:, :1] - of[:, 1:] for of in (scores, taught))
        return jnp.mean(jnp.square(ours - theirs))
    ours, theirs = jax.nn.log_softmax(scores, axis=1), jax.nn.log_softmax(taught, axis=1)
    return jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=1))
