"""The loss of predicting tokens: the mean cross-entropy over the tokens that are to be predicted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

# A target below zero: nothing is predicted there.
NO_TARGET = -1


def num_predicted(targets: Int[Array, "B S"]) -> Float32[Array, ""]:
    """How many tokens are to be predicted; float32, the weight of their mean loss among those of other rows.

    >>> float(num_predicted(jnp.array([[3, NO_TARGET], [0, 1]])))
    3.0
    """
    return jnp.sum((targets >= 0).astype(jnp.float32))


def token_loss(logits: Float[Array, "B S V"], targets: Int[Array, "B S"], *, z_loss: float = 0.0) -> Float32[Array, ""]:
    """The mean over predicted tokens of `log Z - logits[target] + z_loss (log Z)^2`, with `Z = sum exp(logits)`.

    Args:
      logits: scores of every token of the vocabulary.
      targets: the token to predict; `NO_TARGET` where there is none.
      z_loss: weight of the term that keeps log Z near 0.

    Returns:
      float32; 0 where nothing is predicted.

    Reference: the z-loss: Chowdhery et al. 2022 (PaLM), section 5, https://arxiv.org/abs/2204.02311

    >>> uniform = jnp.zeros((1, 2, 8))
    >>> float(token_loss(uniform, jnp.array([[3, NO_TARGET]]))) == float(jnp.log(8.0))
    True
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Compared and summed, not looked up: where devices share the vocabulary, each needs only its own part of it.
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, (1, 1, logits.shape[-1]), 2)
    of_target = jnp.sum(jnp.where(vocabulary == targets[:, :, None], logits, 0.0), axis=-1)
    predicted = (targets >= 0).astype(jnp.float32)
    losses = (log_z - of_target + z_loss * jnp.square(log_z)) * predicted
    return jnp.sum(losses) / jnp.maximum(jnp.sum(predicted), 1.0)
