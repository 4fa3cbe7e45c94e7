"""Encoding a batch chunk by chunk, so that the activations of one chunk alone are kept: gradient caching.

A scan over the chunks whose body is computed again in the backward pass is that method as jax says it: the first pass
keeps the vectors only, a loss over all of them gives each vector's gradient, and the backward scan encodes chunk after
chunk once more, adding up the parameters' gradients in their own dtype, float32. The temperature is not in the scan,
and counts once.

Reference: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, section 3.2,
https://arxiv.org/abs/2101.06983
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxscale.errors import UsageError

T = TypeVar("T")


def in_chunks(function: Callable[[Any], T], num_chunks: int, examples: Any) -> T:
    """`function(examples)`, computed on `num_chunks` parts one after the other and again in the backward pass.

    Chunk i holds the examples i, i + num_chunks, ...: a device that has a run of the batch has an equal run of every
    chunk, so that cutting moves nothing between devices.

    Args:
      function: of a tree of arrays [B ...] to another, every example for itself.
      num_chunks: a divisor of B; 1 calls the function as it is.
      examples: the tree.

    >>> in_chunks(lambda x: 2 * x, 2, jax.numpy.arange(4)).tolist()
    [0, 2, 4, 6]
    """
    if num_chunks == 1:
        return function(examples)
    chunks = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // num_chunks, num_chunks, *x.shape[1:]).swapaxes(0, 1), examples
    )
    # Within a scan nothing can be merged with the backward pass, so nothing has to keep the compiler from it.
    body = jax.checkpoint(lambda carry, chunk: (carry, function(chunk)), prevent_cse=False)
    _, made = jax.lax.scan(body, None, chunks)
    joined: T = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), made)
    return joined


def check_chunks(num_examples: int, num_chunks: int, num_ways: int) -> None:
    """Refuses chunks that are no equal parts of every device's examples.

    Args:
      num_examples: that meet in one loss: of a microbatch, over all devices.
      num_chunks: to be cut into.
      num_ways: how many ways the mesh splits examples.

    Raises:
      UsageError: with the numbers of chunks that would do.

    >>> check_chunks(16, 2, 8)
    """
    if num_examples % (num_chunks * num_ways):
        legal = [n for n in range(1, num_examples + 1) if num_examples % (n * num_ways) == 0]
        on = "" if num_ways == 1 else f" on a mesh that splits examples {num_ways} ways"
        advice = f"; use {' or '.join(map(str, legal))}" if legal else ""
        raise UsageError(f"cache_chunks={num_chunks} does not divide {num_examples} examples{on}{advice}")
