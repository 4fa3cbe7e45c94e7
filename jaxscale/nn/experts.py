"""Mixture of experts: a router sends every token to a few of E MLPs, each of which has room for so many.

Shapes are static. Tokens are routed in groups, each within one sequence, so that a group's places are counted without
asking other devices. A token whose expert is full passes it by, and only the residual stream carries it on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Key

from jaxscale.errors import UsageError
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.keys import named_key
from jaxscale.nn.linear import Linear, contract
from jaxscale.nn.mlp import ACTIVATIONS


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


class Routing(NamedTuple):
    """Where every token of a group goes.

    Attributes:
      dispatch: 1 where a token takes this place of this expert's C.
      combine: the same, times the weight that the expert's answer has for the token.
      losses: of the router.
    """

    dispatch: Float32[Array, "B N G E C"]
    combine: Float32[Array, "B N G E C"]
    losses: RouterLosses


def route(logits: Float32[Array, "B N G E"], *, num_chosen: int, capacity: int) -> Routing:
    """Chooses each token's experts, and its place in each of them.

    Places are given to all first choices in the order of the tokens, then to all second ones, and so on. The weights of
    a token's chosen experts are their probabilities, made to sum to 1 where it has several.

    Args:
      logits: of the G tokens of N groups of B sequences.
      num_chosen: experts per token.
      capacity: C, places of an expert in a group.

    Reference: Lepikhin et al. 2020 (GShard), section 2.2 and algorithm 1, https://arxiv.org/abs/2006.16668; for the
      weights Jiang et al. 2024 (Mixtral), section 2.1, https://arxiv.org/abs/2401.04088
    """
    num_experts = logits.shape[-1]
    probabilities = jax.nn.softmax(logits, axis=-1)
    picks = _picks(probabilities, num_chosen)
    weights = [jnp.sum(jnp.where(picked, probabilities, 0.0), axis=-1) for picked in picks]
    if num_chosen > 1:
        weights = [weight / sum(weights) for weight in weights]
    places = jnp.arange(capacity, dtype=jnp.int32).reshape(1, 1, 1, 1, capacity)
    num_taken = jnp.zeros((*logits.shape[:2], 1, num_experts), jnp.int32)
    dispatch = combine = jnp.zeros((*logits.shape, capacity), jnp.float32)
    for picked, weight in zip((pick.astype(jnp.int32) for pick in picks), weights, strict=True):
        place = num_taken + jnp.cumsum(picked, axis=2) - picked
        num_taken = num_taken + jnp.sum(picked, axis=2, keepdims=True)
        taken = (picked[..., None] > 0) & (place[..., None] == places)
        dispatch = dispatch + taken.astype(jnp.float32)
        combine = combine + jnp.where(taken, weight[..., None, None], 0.0)
    share = num_taken.astype(jnp.float32).mean(axis=(1, 2)) / (logits.shape[2] * num_chosen)
    load_balance = num_experts * jnp.sum(share * probabilities.mean(axis=(1, 2)), axis=-1)
    z = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)), axis=(1, 2))
    return Routing(dispatch, combine, RouterLosses(load_balance, z))


def _picks(probabilities: Float32[Array, "B N G E"], num_chosen: int) -> list[Bool[Array, "B N G E"]]:
    """True at each token's first choice, then at its second, and so on; of equal ones the first comes first.

    `jax.lax.top_k` finds the same, but sorts: XLA then brings the tokens of all devices together.
    """
    picks: list[Bool[Array, "B N G E"]] = []
    for _ in range(num_chosen):
        left = functools.reduce(lambda rest, pick: jnp.where(pick, -1.0, rest), picks, probabilities)
        picks.append(jax.nn.one_hot(jnp.argmax(left, axis=-1), left.shape[-1], dtype=jnp.int32) > 0)
    return picks


class Experts(nnx.Module):
    """E MLPs, their weights stacked, and the router, which is computed in float32."""

    def __init__(
        self,
        config: ExpertsConfig,
        *,
        d_model: int,
        d_ff: int,
        activation: str,
        gated: bool,
        stddev: float,
        out_stddev: float,
        key: Key[Array, ""],
    ):
        """Makes the maps, without biases.

        Args:
          config: how many experts there are, and how tokens come to them.
          d_model: D.
          d_ff: F, of one expert.
          activation: a key of ACTIVATIONS.
          gated: whether there is a gate.
          stddev: of the initial router, up and gate kernels.
          out_stddev: of the initial down kernel.
          key: random key.
        """

        def stacked(name: str, in_dim: int, out_dim: int, spread: float) -> nnx.Param:
            shape = (config.num_experts, in_dim, out_dim)
            return nnx.Param(spread * jax.random.truncated_normal(named_key(key, name), -2, 2, shape, jnp.float32))

        self.config = config
        self.activation = activation
        self.router = Linear(
            (d_model,), (config.num_experts,), use_bias=False, stddev=stddev, key=named_key(key, "router")
        )
        self.up = stacked("up", d_model, d_ff, stddev)
        self.gate = stacked("gate", d_model, d_ff, stddev) if gated else None
        self.down = stacked("down", d_ff, d_model, out_stddev)

    def __call__(
        self, x: Float[Array, "B S D"], compute_dtype: DTypeLike
    ) -> tuple[Float32[Array, "B S D"], RouterLosses]:
        """Returns what the experts made of every token, weighted and summed, in float32; and the router's losses.

        Raises:
          UsageError: S is above `group_size` and no multiple of it.
        """
        b, s, d = x.shape
        size = min(self.config.group_size, s)
        if s % size:
            raise UsageError(f"sequence of {s} tokens must be a multiple of experts.group_size={size}")
        groups = x.reshape(b, s // size, size, d)
        dispatch, combine, losses = route(
            self.router(groups.astype(jnp.float32), jnp.float32),
            num_chosen=self.config.num_experts_per_token,
            capacity=self.config.capacity(size),
        )
        # Every place holds one token or none, so nothing is summed and nothing rounded. [B N E C D]
        exact = jax.lax.Precision.HIGHEST if jnp.dtype(compute_dtype) == jnp.float32 else None
        read = jax.lax.dot_general(
            dispatch.astype(compute_dtype),
            groups.astype(compute_dtype),
            (((2,), (2,)), ((0, 1), (0, 1))),
            precision=exact,
        )
        made = self._apply(read, compute_dtype).astype(compute_dtype)
        # [B N G D], summed over the places of all experts
        out = contract(combine, made, contracted=((3, 4), (0, 3)), batch=((0, 1), (1, 2)), compute_dtype=compute_dtype)
        return out.reshape(b, s, d), losses

    def _apply(self, x: Float[Array, "B N E C D"], compute_dtype: DTypeLike) -> Float32[Array, "E B N C D"]:
        """Each expert's MLP on what it reads."""
        activate = ACTIVATIONS[self.activation]

        def into(kernel: nnx.Param) -> Float32[Array, "E B N C F"]:
            return contract(x, kernel[...], contracted=((4,), (1,)), batch=((2,), (0,)), compute_dtype=compute_dtype)

        up = into(self.up)
        inner = activate(up) if self.gate is None else activate(into(self.gate)) * up
        return contract(
            inner.astype(compute_dtype),
            self.down[...],
            contracted=((4,), (1,)),
            batch=((0,), (0,)),
            compute_dtype=compute_dtype,
        )
