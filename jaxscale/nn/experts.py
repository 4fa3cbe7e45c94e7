"""Mixture of experts: a router sends every token to a few of E MLPs, which read all of them or have room for so many.

With a capacity, tokens are routed in groups, each within one sequence, so that a group's places are counted without
asking other devices. A token whose expert is full passes it by, and only the residual stream carries it on. Without
one, every expert reads what it is sent (`dropless`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Key

from jaxscale.errors import UsageError
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.dropless import read_by_all_chosen
from jaxscale.nn.keys import named_key
from jaxscale.nn.linear import Linear, contract
from jaxscale.nn.mlp import ACTIVATIONS
from jaxscale.nn.router import RouterLosses, choose, router_losses


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

    Places are given to all first choices in the order of the tokens, then to all second ones, and so on.

    Args:
      logits: of the G tokens of N groups of B sequences.
      num_chosen: experts per token.
      capacity: C, places of an expert in a group.

    Reference: Lepikhin et al. 2020 (GShard), section 2.2 and algorithm 1, https://arxiv.org/abs/2006.16668
    """
    choices = choose(logits, num_chosen)
    places = jnp.arange(capacity, dtype=jnp.int32).reshape(1, 1, 1, 1, capacity)
    num_taken = jnp.zeros((*logits.shape[:2], 1, logits.shape[-1]), jnp.int32)
    dispatch = combine = jnp.zeros((*logits.shape, capacity), jnp.float32)
    for pick, weight in zip(choices.picks, choices.weights, strict=True):
        picked = pick.astype(jnp.int32)
        place = num_taken + jnp.cumsum(picked, axis=2) - picked
        num_taken = num_taken + jnp.sum(picked, axis=2, keepdims=True)
        taken = (picked[..., None] > 0) & (place[..., None] == places)
        dispatch = dispatch + taken.astype(jnp.float32)
        combine = combine + jnp.where(taken, weight[..., None, None], 0.0)
    return Routing(dispatch, combine, router_losses(logits, choices))


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
        if self.config.group_size is None:
            return self._read_all(x, compute_dtype)
        return self._read_groups(x, min(self.config.group_size, x.shape[1]), compute_dtype)

    def _read_all(
        self, x: Float[Array, "B S D"], compute_dtype: DTypeLike
    ) -> tuple[Float32[Array, "B S D"], RouterLosses]:
        logits = self.router(x.astype(jnp.float32), jnp.float32)
        choices = choose(logits, self.config.num_experts_per_token)
        kernels = [kernel[...] for kernel in (self.gate, self.up, self.down) if kernel is not None]
        out = read_by_all_chosen(x, choices, kernels, activation=self.activation, compute_dtype=compute_dtype)
        return out, router_losses(logits, choices)

    def _read_groups(
        self, x: Float[Array, "B S D"], size: int, compute_dtype: DTypeLike
    ) -> tuple[Float32[Array, "B S D"], RouterLosses]:
        b, s, d = x.shape
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
