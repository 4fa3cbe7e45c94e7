"""Contractions that round their operands to the compute dtype and accumulate in float32, and the Linear layer.

Differentiated as it stands, a bfloat16 `dot_general` with float32 output would contract a float32 cotangent with a
bfloat16 operand, which no hardware does fast, and would round a weight's gradient to bfloat16 before the sum over
devices. `contract` therefore has its own backward pass: there too the operands are rounded, and the sums are float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Key

from jaxscale.nn.config import LoRAConfig
from jaxscale.nn.keys import named_key

# Positions of dims: of the left operand, of the right one.
Dims = tuple[tuple[int, ...], tuple[int, ...]]


def contract(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    *,
    contracted: Dims,
    batch: Dims = ((), ()),
    compute_dtype: DTypeLike,
) -> Float32[Array, "..."]:
    """`jax.lax.dot_general` with operands rounded to `compute_dtype` and float32 sums, forward and backward.

    Args:
      left: float32 or bfloat16; its gradient has its dtype.
      right: the same.
      contracted: the dims summed over.
      batch: the dims kept in step.
      compute_dtype: float32 or bfloat16.

    Returns:
      float32; dims: batch, then the free ones of left, then those of right.

    >>> contract(jnp.ones((2, 3)), jnp.ones((3, 4)), contracted=((1,), (0,)), compute_dtype=jnp.bfloat16)[0, 0]
    Array(3., dtype=float32)
    """
    return _contract(left, right, (contracted, batch), jnp.dtype(compute_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _contract(
    left: Float[Array, "..."], right: Float[Array, "..."], dims: tuple[Dims, Dims], compute_dtype: jnp.dtype
) -> Float32[Array, "..."]:
    return _dot(left.astype(compute_dtype), right.astype(compute_dtype), dims)


def _dot(left: Float[Array, "..."], right: Float[Array, "..."], dims: tuple[Dims, Dims]) -> Float32[Array, "..."]:
    # In float32, anything but HIGHEST lets TPUs round the operands to bfloat16, and GPUs to TF32.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(left, right, dims, precision=precision, preferred_element_type=jnp.float32)


def _contract_forward(
    left: Float[Array, "..."], right: Float[Array, "..."], dims: tuple[Dims, Dims], compute_dtype: jnp.dtype
) -> tuple[Float32[Array, "..."], tuple[Float[Array, "..."], Float[Array, "..."]]]:
    # The dot itself, and no call of `_contract`: a remat policy that keeps the results of dots must see it.
    return _dot(left.astype(compute_dtype), right.astype(compute_dtype), dims), (left, right)


def _contract_backward(
    dims: tuple[Dims, Dims],
    compute_dtype: jnp.dtype,
    operands: tuple[Float[Array, "..."], Float[Array, "..."]],
    cotangent: Float32[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    left, right = operands
    (left_contracted, right_contracted), (left_batch, right_batch) = dims
    left_free, right_free = _free(left, left_contracted, left_batch), _free(right, right_contracted, right_batch)
    # The cotangent's dims: batch, free of left, free of right.
    batch = tuple(range(len(left_batch)))
    cotangent = cotangent.astype(compute_dtype)
    from_left = tuple(range(len(batch), len(batch) + len(left_free)))
    from_right = tuple(range(cotangent.ndim - len(right_free), cotangent.ndim))
    left, right = left.astype(compute_dtype), right.astype(compute_dtype)
    left_order = (*left_batch, *left_free, *_in_step(left_contracted, right_contracted))
    right_order = (*right_batch, *right_free, *_in_step(right_contracted, left_contracted))
    left_gradient = _ordered_dot(cotangent, right, (from_right, right_free), (batch, right_batch), left_order)
    right_gradient = _ordered_dot(cotangent, left, (from_left, left_free), (batch, left_batch), right_order)
    return left_gradient.astype(operands[0].dtype), right_gradient.astype(operands[1].dtype)


def _ordered_dot(
    left: Float[Array, "..."], right: Float[Array, "..."], contracted: Dims, batch: Dims, order: tuple[int, ...]
) -> Float32[Array, "..."]:
    """A contraction whose i-th dim (batch, free of left, free of right) goes to place order[i].

    The operands change places where that leaves nothing to transpose: XLA's CPU backend folds a transpose that follows
    a bfloat16 dot into the dot, and has no code for what comes out.
    """
    num_batch, num_right_free = len(batch[0]), right.ndim - len(batch[1]) - len(contracted[1])
    middle = len(order) - num_right_free
    swapped = (*order[:num_batch], *order[middle:], *order[num_batch:middle])
    if swapped == tuple(range(len(order))):
        return _dot(right, left, (contracted[::-1], batch[::-1]))
    return _dot(left, right, (contracted, batch)).transpose(_inverse(order))


def _free(operand: Float[Array, "..."], contracted: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in range(operand.ndim) if dim not in {*contracted, *batch})


def _in_step(dims: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """`dims`, which pair up with `others`, in the increasing order of `others`."""
    return tuple(dim for _, dim in sorted(zip(others, dims, strict=True)))


def _inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


_contract.defvjp(_contract_forward, _contract_backward)


class Linear(nnx.Module):
    """y = x W + b, where W maps the dims `in_dims` to the dims `out_dims`, and neither is ever flattened.

    Keeping [D, H, C] whole, rather than [D, H * C], lets a plan split it by heads.
    """

    def __init__(
        self,
        in_dims: tuple[int, ...],
        out_dims: tuple[int, ...],
        *,
        use_bias: bool,
        stddev: float,
        key: Key[Array, ""],
        lora: LoRAConfig | None = None,
    ):
        """Draws W from a normal distribution cut at two standard deviations; b is zero.

        Args:
          in_dims: the sizes of x's last dims, which are contracted.
          out_dims: the sizes that stand in their place in y.
          use_bias: whether there is a b.
          stddev: standard deviation before the cut.
          key: random key.
          lora: of the factors beside W; None for none.
        """
        self.num_in_dims = len(in_dims)
        draw = jax.random.truncated_normal(named_key(key, "kernel"), -2, 2, (*in_dims, *out_dims), jnp.float32)
        self.kernel = nnx.Param(stddev * draw)
        self.bias = nnx.Param(jnp.zeros(out_dims, jnp.float32)) if use_bias else None
        self.lora_scale = 0.0 if lora is None else lora.scale
        if lora is None:
            self.lora_a = self.lora_b = None
        else:
            drawn = jax.random.normal(named_key(key, "lora_a"), (*in_dims, lora.rank), jnp.float32)
            self.lora_a = nnx.Param(drawn / math.sqrt(math.prod(in_dims)))
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, *out_dims), jnp.float32))

    def __call__(self, x: Float[Array, "..."], compute_dtype: DTypeLike) -> Float32[Array, "..."]:
        """Returns y in float32 for x [..., *in_dims], with the contraction computed in `compute_dtype`."""
        num = self.num_in_dims
        contracted = (tuple(range(x.ndim - num, x.ndim)), tuple(range(num)))
        y = contract(x, self.kernel[...], contracted=contracted, compute_dtype=compute_dtype)
        if self.lora_a is not None and self.lora_b is not None:
            narrow = contract(x, self.lora_a[...], contracted=contracted, compute_dtype=compute_dtype)
            narrow = (self.lora_scale * narrow).astype(compute_dtype)
            last = ((narrow.ndim - 1,), (0,))
            y = y + contract(narrow, self.lora_b[...], contracted=last, compute_dtype=compute_dtype)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(jnp.float32)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def residual_stddev(stddev: float, num_layers: int) -> float:
    """The initial spread of the two matrices per layer that write into a pre-norm residual stream.

    Reference: Radford et al. 2019 (GPT-2), section 2.3: 1 / sqrt(N) for N residual additions.

    >>> residual_stddev(0.02, 2)
    0.01
    """
    return stddev / math.sqrt(2 * num_layers)
