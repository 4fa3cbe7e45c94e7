"""Causal attention by blocks of queries: what lies to the right of a block's last query is never multiplied.

The plain attention makes every score and throws the upper half away. Here a block of queries meets the keys up to its
own end only: of 512 positions in 4 blocks, 5 of 8 scores are made. It is written in jax's own operations, so that it
runs, and is differentiated, on any platform; where there is a fused kernel, that is better.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxscale.nn.attention_plain import attend

# Positions in the smallest block, and how many blocks there are at the most: smaller ones leave out little more, and
# their products are too small to be fast.
BLOCK = 128
_MAX_BLOCKS = 8


def block_of(length: int) -> int:
    """The positions in a block: the fewest that divide the length, from `BLOCK` on and in not too many blocks.

    Args:
      length: a multiple of `BLOCK`.

    >>> block_of(256), block_of(512), block_of(4096), block_of(1152)
    (128, 128, 512, 384)
    """
    fewest = max(BLOCK, length // _MAX_BLOCKS)
    return next(block for block in range(fewest, length + 1) if length % block == 0 and block % BLOCK == 0)


def attend_by_blocks(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    query_groups: Int[Array, "B S"] | None = None,
    key_groups: Int[Array, "B S"] | None = None,
    *,
    scaled: bool,
) -> Float32[Array, "B S H C"]:
    """softmax(query key^T / sqrt(C)) value, where query s reads keys t <= s of its own group.

    Args:
      query: in the compute dtype, as the others are; S is a multiple of `BLOCK`.
      key: what is compared with queries.
      value: what is mixed.
      query_groups: None, and then of the keys too: all are of one group.
      key_groups: of every key.
      scaled: whether scores are divided by sqrt(C).

    Reference: the order of the work: Dao 2023 (FlashAttention-2), section 3.1, https://arxiv.org/abs/2307.08691
    """
    length = query.shape[1]
    block = block_of(length)
    made = []
    for start in range(0, length, block):
        end = start + block
        allowed: Bool[Array, "#B Q T"] = (jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None])[None]
        if query_groups is not None and key_groups is not None:
            allowed = allowed & (query_groups[:, start:end, None] == key_groups[:, None, :end])
        of_block = query[:, start:end], key[:, :end], value[:, :end]
        made.append(attend(*of_block, allowed, compute_dtype=query.dtype, scaled=scaled))
    return jnp.concatenate(made, axis=1)
