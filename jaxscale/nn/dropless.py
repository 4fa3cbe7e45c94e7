"""Experts that read every token that chose them: rows sorted by expert, one ragged contraction a matrix, and back.

On a mesh each device sorts the tokens that it has, so that none asks another which experts its tokens took. Where the
experts are on other devices the rows go there and come back (`token_exchange`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from jaxscale.nn.grouped import grouped_contract
from jaxscale.nn.mlp import ACTIVATIONS
from jaxscale.nn.router import Choices
from jaxscale.nn.token_exchange import Exchange
from jaxscale.sharding.on_parts import Parts, on_parts


def read_by_all_chosen(
    x: Float[Array, "B S D"],
    choices: Choices,
    kernels: list[Float[Array, "E ..."]],
    *,
    activation: str,
    compute_dtype: DTypeLike,
) -> Float32[Array, "B S D"]:
    """What each token's chosen experts made of it, weighted and summed.

    Args:
      x: the tokens.
      choices: of the router.
      kernels: [E D F] of the gate, where there is one, and of up; [E F D] of down.
      activation: a key of ACTIVATIONS.
      compute_dtype: of the contractions.
    """
    numbers = jnp.stack([jnp.argmax(picked, axis=-1).astype(jnp.int32) for picked in choices.picks], axis=-1)
    weights = jnp.stack(choices.weights, axis=-1)
    body = _Experts(activation=activation, compute_dtype=jnp.dtype(compute_dtype))
    into = ",".join(["EdF"] * (len(kernels) - 1))
    # In float32: the gradients that the devices of `tensor` have of the tokens are added up in it.
    return on_parts(body, f"BSd,BSk,BSk,{into},EFd->BSd", x.astype(jnp.float32), numbers, weights, *kernels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Experts:
    """The body: one device's tokens, its experts, its part of each one's hidden dim."""

    activation: str
    compute_dtype: jnp.dtype

    def __call__(
        self,
        parts: Parts,
        x: Float32[Array, "B S D"],
        numbers: Int32[Array, "B S K"],
        weights: Float32[Array, "B S K"],
        *kernels: Float32[Array, "E ..."],
    ) -> Float32[Array, "B S D"]:
        b, s, d = x.shape
        num_chosen, chosen = numbers.shape[-1], numbers.reshape(-1)
        exchange = Exchange(
            over=parts.over("E"),
            num_experts_here=kernels[0].shape[0],
            num_chosen=num_chosen,
            platform=parts.platform,
        )
        # Where each choice, token by token, stands among those sorted by expert, and the other way round.
        order = jnp.argsort(chosen, stable=True)
        places = jnp.argsort(order)
        all_experts = jnp.arange(exchange.num_experts, dtype=jnp.int32)
        counts = jnp.sum((chosen[:, None] == all_experts[None]).astype(jnp.int32), axis=0)
        rows = _sorted(x.reshape(b * s, d), order, places, num_chosen, self.compute_dtype)
        read, sizes = exchange.to_experts(rows, counts)
        made = self._apply(parts, read, sizes, kernels)
        if not parts.over("F"):
            # Whole sums; parts of sums are rounded by nobody before they are added up.
            made = made.astype(self.compute_dtype)
        made = _unsorted(exchange.to_tokens(made, counts, len(rows)), order, places).reshape(b, s, num_chosen, d)
        out = jnp.sum(made.astype(jnp.float32) * weights[..., None], axis=2)
        return jax.lax.psum(out, parts.over("F")) if parts.over("F") else out

    def _apply(
        self,
        parts: Parts,
        rows: Float[Array, "R D"],
        sizes: Int32[Array, " E"],
        kernels: tuple[Float32[Array, "E ..."], ...],
    ) -> Float32[Array, "R D"]:
        """Each expert's MLP on its run of rows."""

        def through(i: int, rows: Float[Array, "R X"]) -> Float32[Array, "R Y"]:
            stored = parts.stored_over(_FIRST_KERNEL + i)
            return grouped_contract(rows, kernels[i], sizes, stored=stored, compute_dtype=self.compute_dtype)

        *into, down = range(len(kernels))
        inner = ACTIVATIONS[self.activation](through(into[0], rows))
        if len(into) > 1:
            inner = inner * through(into[1], rows)
        return through(down, inner.astype(self.compute_dtype))


# The position of the first kernel among the body's operands.
_FIRST_KERNEL = 3


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _sorted(
    tokens: Float32[Array, "T D"],
    order: Int32[Array, " R"],
    places: Int32[Array, " R"],
    num_chosen: int,
    dtype: jnp.dtype,
) -> Float[Array, "R D"]:
    """A row for each choice, by expert. Its gradient is looked up too, where jax would scatter."""
    return _rows(tokens.astype(dtype), order // num_chosen)


def _sorted_backward(
    num_chosen: int, dtype: jnp.dtype, places: Int32[Array, " R"], cotangent: Float[Array, "R D"]
) -> tuple[Float32[Array, "T D"], None, None]:
    of_choices = _rows(cotangent, places).reshape(-1, num_chosen, cotangent.shape[-1])
    return jnp.sum(of_choices.astype(jnp.float32), axis=1), None, None


_sorted.defvjp(
    lambda tokens, order, places, *static: (_sorted(tokens, order, places, *static), places), _sorted_backward
)


@jax.custom_vjp
def _unsorted(rows: Float[Array, "R D"], order: Int32[Array, " R"], places: Int32[Array, " R"]) -> Float[Array, "R D"]:
    """The rows of all choices, token by token."""
    return _rows(rows, places)


def _rows(rows: Float[Array, "R D"], numbers: Int32[Array, " Q"]) -> Float[Array, "Q D"]:
    return rows.at[numbers].get(mode="promise_in_bounds")


_unsorted.defvjp(
    lambda rows, order, places: (_unsorted(rows, order, places), order),
    lambda order, cotangent: (_rows(cotangent, order), None, None),
)
