"""The loss of predicting tokens from hidden states, in chunks: the scores of the vocabulary never exist whole.

Scores of all tokens, [B S V], are the largest array of most language models' steps. Here a scan makes those of some
positions at a time and, where a gradient is asked for, their gradient with them: it is known as soon as the scores
are, so nothing of a chunk is kept and nothing is computed twice.

Where devices share the examples, each chunk's part of the output weights' gradient is added up over them, as a scan
can't carry a sum that is still to be made: one sum becomes one for each chunk. `jaxscale plan` counts them.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxscale.errors import UsageError
from jaxscale.nn.linear import Dims, contract


class _How(NamedTuple):
    """What is known before any array is."""

    vocabulary_dim: int
    num_chunks: int
    z_loss: float
    compute_dtype: jnp.dtype


class _Sums(NamedTuple):
    """Of the predicted tokens of a chunk, or of all."""

    cross_entropy: Float32[Array, ""]
    log_z: Float32[Array, ""]
    log_z_squared: Float32[Array, ""]


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
      compute_dtype: of the matrix products; sums are float32.

    Returns:
      The loss, 0 where nothing is predicted, and as metrics, which have no gradient, `cross_entropy`, which is the loss
      without the z-loss, and `log_z`, the mean of log Z.

    Raises:
      UsageError: `chunk_tokens` is below 1.

    Reference: the z-loss: Chowdhery et al. 2022 (PaLM), section 5, https://arxiv.org/abs/2204.02311; the gradient in
      the forward pass: Hsu et al. 2024 (Liger Kernel), section 3.2, https://arxiv.org/abs/2410.10989

    >>> loss, _ = chunked_token_loss(
    ...     jnp.ones((1, 4, 2)), jnp.zeros((8, 2)), jnp.array([[3, 1, -1, 0]]), vocabulary_dim=0, chunk_tokens=2
    ... )
    >>> float(loss) == float(jnp.log(8.0))
    True
    """
    number = num_chunks(targets.shape[0], targets.shape[1], chunk_tokens)
    how = _How(vocabulary_dim, number, z_loss, jnp.dtype(compute_dtype))
    loss, (cross_entropy, log_z) = _loss(how, hidden, output_weights, targets)
    return loss, {"cross_entropy": jax.lax.stop_gradient(cross_entropy), "log_z": jax.lax.stop_gradient(log_z)}


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


_Loss = tuple[Float32[Array, ""], tuple[Float32[Array, ""], Float32[Array, ""]]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    how: _How, hidden: Float[Array, "B S D"], output_weights: Float[Array, "..."], targets: Int[Array, "B S"]
) -> _Loss:
    weights = output_weights.astype(how.compute_dtype)

    def step(total: _Sums, chunk: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        scores = _scores(how, chunk[0], weights)
        return _added(total, _sums(scores, chunk[1])[0]), None

    total, _ = jax.lax.scan(step, _no_sums(), (_cut(hidden, how.num_chunks), _cut(targets, how.num_chunks)))
    return _means(how, total, _count(targets))


def _loss_forward(
    how: _How, hidden: Float[Array, "B S D"], output_weights: Float[Array, "..."], targets: Int[Array, "B S"]
) -> tuple[_Loss, tuple[Float[Array, "B S D"], Float[Array, "..."]]]:
    weights, count = output_weights.astype(how.compute_dtype), _count(targets)

    def step(
        carry: tuple[_Sums, Float32[Array, "D V"]], chunk: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[_Sums, Float32[Array, "D V"]], Float[Array, "B C D"]]:
        (total, of_weights), (here, by_width, wanted) = carry, chunk
        scores = _scores(how, here, weights)
        sums, log_z, is_target = _sums(scores, wanted)
        predicted = (wanted >= 0).astype(jnp.float32) / count
        of_softmax = (predicted * (1.0 + 2.0 * how.z_loss * log_z))[:, :, None]
        slope = jnp.exp(scores - log_z[:, :, None]) * of_softmax
        slope = jnp.where(is_target, slope - predicted[:, :, None], slope)
        slope = slope.astype(how.compute_dtype)
        of_hidden = _product(how, slope, weights, ((2,), (how.vocabulary_dim,)))
        added = _product(how, by_width, slope, ((1, 2), (0, 1)))
        return (_added(total, sums), of_weights + added), of_hidden.astype(hidden.dtype)

    width, num_tokens = hidden.shape[-1], output_weights.shape[how.vocabulary_dim]
    start = (_no_sums(), jnp.zeros((width, num_tokens), jnp.float32))
    chunks = _cut(hidden, how.num_chunks)
    # Once more with the width first: what is summed over stands next to itself in memory, which CPUs need for speed.
    by_width = jnp.moveaxis(chunks, 3, 1)
    (total, of_weights), of_hidden = jax.lax.scan(step, start, (chunks, by_width, _cut(targets, how.num_chunks)))
    if how.vocabulary_dim == 0:
        # A scan of one chunk is none, and XLA's CPU backend folds a transpose that follows a bfloat16 dot into the dot,
        # and has no code for what comes out.
        of_weights = jax.lax.optimization_barrier(of_weights).T
    return _means(how, total, count), (_joined(of_hidden), of_weights.astype(output_weights.dtype))


def _loss_backward(
    how: _How, gradients: tuple[Float[Array, "B S D"], Float[Array, "..."]], cotangent: _Loss
) -> tuple[Float[Array, "B S D"], Float[Array, "..."], None]:
    of_hidden, of_weights = gradients
    scale = cotangent[0]
    return of_hidden * scale.astype(of_hidden.dtype), of_weights * scale.astype(of_weights.dtype), None


_loss.defvjp(_loss_forward, _loss_backward)


def _scores(how: _How, hidden: Float[Array, "B C D"], weights: Float[Array, "..."]) -> Float32[Array, "B C V"]:
    return _product(how, hidden, weights, ((2,), (1 - how.vocabulary_dim,)))


def _product(
    how: _How, left: Float[Array, "..."], right: Float[Array, "..."], contracted: Dims
) -> Float32[Array, "..."]:
    return contract(left, right, contracted=contracted, compute_dtype=how.compute_dtype)


def _sums(
    scores: Float32[Array, "B C V"], targets: Int[Array, "B C"]
) -> tuple[_Sums, Float32[Array, "B C"], Bool[Array, "B C V"]]:
    """The sums over predicted tokens, log Z of every token, and where the targets are."""
    # Compared and summed, not looked up: where devices share the vocabulary, each needs only its own part of it.
    is_target = jax.lax.broadcasted_iota(targets.dtype, (1, 1, scores.shape[-1]), 2) == targets[:, :, None]
    of_target = jnp.sum(jnp.where(is_target, scores, 0.0), axis=-1)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    predicted = (targets >= 0).astype(jnp.float32)
    each = (log_z - of_target, log_z, jnp.square(log_z))
    return _Sums(*(jnp.sum(value * predicted) for value in each)), log_z, is_target


def _means(how: _How, total: _Sums, count: Float32[Array, ""]) -> _Loss:
    cross_entropy, log_z, squared = (value / count for value in total)
    return cross_entropy + how.z_loss * squared, (cross_entropy, log_z)


def _count(targets: Int[Array, "B S"]) -> Float32[Array, ""]:
    return jnp.maximum(jnp.sum((targets >= 0).astype(jnp.float32)), 1.0)


def _no_sums() -> _Sums:
    return _Sums(*(jnp.zeros((), jnp.float32) for _ in _Sums._fields))


def _added(total: _Sums, more: _Sums) -> _Sums:
    return _Sums(*(a + b for a, b in zip(total, more, strict=True)))


def _cut(x: Float[Array, "B S *D"] | Int[Array, "B S"], number: int) -> jax.Array:
    """[B S ...] as [number, B, S / number, ...].

    Chunk i holds the positions i, i + number, ...: where devices share the positions, each has its part of every chunk,
    so that cutting moves nothing between them.
    """
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // number, number, *x.shape[2:]), 2, 0)


def _joined(chunks: Float[Array, "N B C D"]) -> Float[Array, "B S D"]:
    """What `_cut` cut."""
    number, num_examples, length, width = chunks.shape
    return jnp.moveaxis(chunks, 0, 2).reshape(num_examples, length * number, width)
