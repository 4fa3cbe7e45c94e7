"""The loss of predicting tokens from hidden states, in chunks: the scores of the vocabulary never exist whole.

Scores of all tokens, [B S V], are the largest array of most language models' steps. Here a scan makes those of some
positions at a time, forward, and once more backward, which costs one matmul with the output weights more. Kept are the
hidden states and two numbers per token.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from jaxscale.errors import UsageError
from jaxscale.nn.linear import contract


def chunked_token_loss(
    hidden: Float[Array, "B S D"],
    output_weights: Float[Array, "V D"] | Float[Array, "D V"],
    targets: Int[Array, "B S"],
    *,
    vocabulary_dim: Literal[0, 1],
    chunk_tokens: int,
    z_loss: float = 0.0,
    compute_dtype: DTypeLike = jnp.float32,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """The mean over predicted tokens of `log Z - score[target] + z_loss (log Z)^2`, with `Z = sum exp(scores)`.

    Args:
      hidden: what the output weights are multiplied with.
      output_weights: float32; the token table where it is tied.
      targets: the token to predict; below 0 where there is none.
      vocabulary_dim: which dim of the weights is the vocabulary.
      chunk_tokens: of all examples together, the most whose scores exist at once, as far as `num_chunks` can.
      z_loss: weight of the term that keeps log Z near 0.
      compute_dtype: of the matrix product; sums are float32.

    Returns:
      The loss, 0 where nothing is predicted, and as metrics `cross_entropy`, which is the loss without the z-loss, and
      `log_z`, the mean of log Z.

    Raises:
      UsageError: `chunk_tokens` is below 1.

    Reference: the z-loss: Chowdhery et al. 2022 (PaLM), section 5, https://arxiv.org/abs/2204.02311

    >>> loss, _ = chunked_token_loss(
    ...     jnp.ones((1, 4, 2)), jnp.zeros((8, 2)), jnp.array([[3, 1, -1, 0]]), vocabulary_dim=0, chunk_tokens=2
    ... )
    >>> float(loss) == float(jnp.log(8.0))
    True
    """
    num_examples, length = targets.shape
    number = num_chunks(num_examples, length, chunk_tokens)
    one_chunk = functools.partial(
        _log_z_and_target_scores, vocabulary_dim=vocabulary_dim, compute_dtype=jnp.dtype(compute_dtype)
    )
    again = jax.checkpoint(one_chunk, prevent_cse=False)

    def step(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, again(chunk[0], output_weights, chunk[1])

    # Chunk i holds the positions i, i + number, ...: where devices share the positions, each has its part of every
    # chunk, so that cutting moves nothing between them.
    _, (log_z, of_target) = jax.lax.scan(step, None, (_cut(hidden, number), _cut(targets, number)))
    predicted = (_cut(targets, number) >= 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(predicted), 1.0)
    cross_entropy = jnp.sum((log_z - of_target) * predicted) / count
    loss = cross_entropy + z_loss * jnp.sum(jnp.square(log_z) * predicted) / count
    return loss, {"cross_entropy": cross_entropy, "log_z": jnp.sum(log_z * predicted) / count}


def num_chunks(num_examples: int, length: int, chunk_tokens: int) -> int:
    """Into how many chunks the positions are cut: the fewest that divide them and hold at most `chunk_tokens` each.

    A chunk has at least one position of every example.

    Raises:
      UsageError: `chunk_tokens` is below 1.

    >>> num_chunks(8, 512, 1024), num_chunks(8, 512, 1000), num_chunks(8, 512, 10**6), num_chunks(8, 512, 1)
    (4, 8, 1, 512)
    """
    if chunk_tokens < 1:
        raise UsageError(f"chunk_tokens={chunk_tokens} must be at least 1; about 1,024 per device is usual")
    fewest = min(math.ceil(num_examples * length / chunk_tokens), length)
    return next(number for number in range(fewest, length + 1) if length % number == 0)


def _cut(x: Float[Array, "B S *D"] | Int[Array, "B S"], number: int) -> jax.Array:
    """[B S ...] as [number, B, S / number, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // number, number, *x.shape[2:]), 2, 0)


def _log_z_and_target_scores(
    hidden: Float[Array, "B S D"],
    output_weights: Float[Array, "..."],
    targets: Int[Array, "B S"],
    *,
    vocabulary_dim: int,
    compute_dtype: jnp.dtype,
) -> tuple[Float32[Array, "B S"], Float32[Array, "B S"]]:
    scores = contract(
        hidden.astype(compute_dtype),
        output_weights,
        contracted=((2,), (1 - vocabulary_dim,)),
        compute_dtype=compute_dtype,
    )
    # Compared and summed, not looked up: where devices share the vocabulary, each needs only its own part of it.
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, (1, 1, scores.shape[-1]), 2)
    of_target = jnp.sum(jnp.where(vocabulary == targets[:, :, None], scores, 0.0), axis=-1)
    return jax.nn.logsumexp(scores, axis=-1), of_target
