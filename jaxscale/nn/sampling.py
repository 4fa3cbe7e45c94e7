"""How the next token is chosen from its scores: the best one, or one drawn from the best few."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which tokens may be drawn, and with what probabilities.

    Attributes:
      temperature: scores are divided by it before the softmax; 0 takes the token with the highest score, always.
      top_k: only the k tokens with the highest scores may be drawn (and those equal to the last of them); None: all.
      top_p: of those, only the fewest whose probabilities come to at least p.
      seed: of the draws; below 2**32.

    Reference: top-k: Fan et al. 2018, section 5.4, https://arxiv.org/abs/1805.04833; top-p: Holtzman et al. 2019,
      section 3.1, https://arxiv.org/abs/1904.09751
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature={self.temperature} must be a finite number, at least 0 (0: the best token)")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k={self.top_k} must be at least 1, or None for all tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed} must be at least 0 and below 2**32")


def choose_tokens(logits: Float32[Array, "B V"], keys: Key[Array, " B"], sampling: Sampling) -> Int32[Array, " B"]:
    """The next token of every row.

    Args:
      logits: the scores.
      keys: one for each row; not used where the temperature is 0.
      sampling: how to choose.

    >>> logits = jnp.array([[0.0, 3.0, 1.0]])
    >>> choose_tokens(logits, jax.random.split(jax.random.key(0), 1), Sampling()).tolist()
    [1]
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = truncated(logits / jnp.float32(sampling.temperature), top_k=sampling.top_k, top_p=sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def truncated(logits: Float32[Array, "B V"], *, top_k: int | None, top_p: float) -> Float32[Array, "B V"]:
    """The scores, with minus infinity where a token may not be drawn; see `Sampling`.

    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    >>> jnp.isfinite(truncated(logits, top_k=3, top_p=1.0)).tolist()
    [[True, True, True, False]]
    >>> jnp.isfinite(truncated(logits, top_k=None, top_p=0.7)).tolist()
    [[True, True, False, False]]
    """
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The first token has nothing before it, so that there is always one.
        lowest = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits
