"""The router of a mixture of experts: which experts read a token, with which weights, and what keeps it even."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


class RouterLosses(NamedTuple):
    """What keeps a router usable, sequence by sequence; their mean is to be weighted and added to the loss.

    A sequence has a balance of its own, as GShard's groups have theirs, so that a batch's losses are the means of its
    parts' and no device asks another one which experts its tokens took.

    Attributes:
      load_balance: E times the sum over experts of (share of the choices) * (mean probability): 1 where both are even.
        Reference: Lepikhin et al. 2020 (GShard), algorithm 1, https://arxiv.org/abs/2006.16668; Fedus et al. 2021
        (Switch), section 2.2, equation 4, https://arxiv.org/abs/2101.03961
      z: the mean over tokens of log(sum(exp(router logits)))^2.
        Reference: Zoph et al. 2022 (ST-MoE), section 3.1, equation 5, https://arxiv.org/abs/2202.08906
    """

    load_balance: Float32[Array, " B"]
    z: Float32[Array, " B"]


class Choices(NamedTuple):
    """The experts of every token, the first choice first.

    Attributes:
      probabilities: of all experts.
      picks: of each choice, True at the expert.
      weights: of each choice, what the expert's answer counts for: their probabilities, made to sum to 1 where there
        are several. Reference: Jiang et al. 2024 (Mixtral), section 2.1, https://arxiv.org/abs/2401.04088
    """

    probabilities: Float32[Array, "*T E"]
    picks: list[Bool[Array, "*T E"]]
    weights: list[Float32[Array, "*T"]]


def choose(logits: Float32[Array, "*T E"], num_chosen: int) -> Choices:
    """Each token's `num_chosen` most probable experts; of equal ones the first comes first."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    picks = _picks(probabilities, num_chosen)
    weights = [jnp.sum(jnp.where(picked, probabilities, 0.0), axis=-1) for picked in picks]
    if num_chosen > 1:
        weights = [weight / sum(weights) for weight in weights]
    return Choices(probabilities, picks, weights)


def router_losses(logits: Float32[Array, "B *S E"], choices: Choices) -> RouterLosses:
    """The losses of every sequence.

    Args:
      logits: of its tokens.
      choices: that `choose` made of them.
    """
    num_experts, tokens = logits.shape[-1], tuple(range(1, logits.ndim - 1))
    num_taken = sum(jnp.sum(picked.astype(jnp.int32), axis=tokens) for picked in choices.picks)
    num_choices = len(choices.picks) * math.prod(logits.shape[1:-1])
    share = jnp.asarray(num_taken).astype(jnp.float32) / num_choices
    load_balance = num_experts * jnp.sum(share * choices.probabilities.mean(axis=tokens), axis=-1)
    z = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)), axis=tokens)
    return RouterLosses(load_balance, z)


def _picks(probabilities: Float[Array, "*T E"], num_chosen: int) -> list[Bool[Array, "*T E"]]:
    """True at each token's first choice, then at its second, and so on.

    `jax.lax.top_k` finds the same, but sorts: XLA then brings the tokens of all devices together.
    """
    picks: list[Bool[Array, "*T E"]] = []
    for _ in range(num_chosen):
        left = functools.reduce(lambda rest, pick: jnp.where(pick, -1.0, rest), picks, probabilities)
        picks.append(jax.nn.one_hot(jnp.argmax(left, axis=-1), left.shape[-1], dtype=jnp.int32) > 0)
    return picks
