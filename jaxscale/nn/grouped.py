"""Contractions of rows that lie in runs, each run with a matrix of its own, at the FLOPs of one matrix per row.

As `linear.contract`: operands are rounded to the compute dtype, sums are float32, and the backward pass does the same.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from jaxscale.sharding.on_parts import Stored

# [R D] and [R F], summed over the rows of each run: [E D F].
_BY_RUNS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
# [R F] and [E D F]: [R D].
_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)
_PLAIN = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (1,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def grouped_contract(
    rows: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    sizes: Int32[Array, " E"],
    *,
    stored: Stored = (),
    compute_dtype: DTypeLike,
) -> Float32[Array, "R F"]:
    """Each row times the matrix of its run.

    Args:
      rows: the first sizes[0] are of the first run, and so on.
      kernels: a matrix for each run.
      sizes: rows of each run. What comes of rows beyond their sum is not said, and has no part in any gradient.
      stored: of kernels that are kept in parts, inside a `shard_map`: gathered forward and again backward, in the
        compute dtype; their gradient is added up in float32, and every device gets its part.
      compute_dtype: float32 or bfloat16.

    >>> rows, kernels = jnp.ones((3, 2)), jnp.stack([jnp.ones((2, 1)), 2 * jnp.ones((2, 1))])
    >>> grouped_contract(rows, kernels, jnp.array([1, 2], jnp.int32), compute_dtype=jnp.float32).ravel().tolist()
    [2.0, 4.0, 4.0]
    """
    return _grouped(rows, kernels, sizes, stored, jnp.dtype(compute_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _grouped(
    rows: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    sizes: Int32[Array, " E"],
    stored: Stored,
    compute_dtype: jnp.dtype,
) -> Float32[Array, "R F"]:
    return _ragged(rows.astype(compute_dtype), _whole(kernels, stored, compute_dtype), sizes, _PLAIN)


def _ragged(
    left: Float[Array, "R X"],
    right: Float[Array, "..."],
    sizes: Int32[Array, " E"],
    dims: jax.lax.RaggedDotDimensionNumbers,
) -> Float32[Array, "..."]:
    # In float32, anything but HIGHEST lets TPUs round the operands to bfloat16, and GPUs to TF32.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None

    # One after the other where there are several, as TPUs have no ragged contraction of batches. Slices have one each.
    @jax.custom_batching.sequential_vmap
    def one(left: Float[Array, "R X"], right: Float[Array, "..."], sizes: Int32[Array, " E"]) -> Float32[Array, "..."]:
        return jax.lax.ragged_dot_general(
            left, right, sizes, dims, precision=precision, preferred_element_type=jnp.dtype(jnp.float32)
        )

    made: Float32[Array, "..."] = one(left, right, sizes)
    return made


def _whole(kernels: Float[Array, "E D F"], stored: Stored, compute_dtype: jnp.dtype) -> Float[Array, "E D F"]:
    kernels = kernels.astype(compute_dtype)
    for dim, axes in stored:
        kernels = jax.lax.all_gather(kernels, axes, axis=dim, tiled=True)
    return kernels


_Operands = tuple[Float[Array, "R D"], Float[Array, "E D F"], Int32[Array, " E"]]


def _forward(
    rows: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    sizes: Int32[Array, " E"],
    stored: Stored,
    compute_dtype: jnp.dtype,
) -> tuple[Float32[Array, "R F"], _Operands]:
    return _grouped(rows, kernels, sizes, stored, compute_dtype), (rows, kernels, sizes)


def _backward(
    stored: Stored, compute_dtype: jnp.dtype, operands: _Operands, cotangent: Float32[Array, "R F"]
) -> tuple[Float[Array, "R D"], Float[Array, "E D F"], None]:
    rows, kernels, sizes = operands
    cotangent = cotangent.astype(compute_dtype)
    of_rows = _ragged(cotangent, _whole(kernels, stored, compute_dtype), sizes, _TRANSPOSED)
    of_kernels = _ragged(rows.astype(compute_dtype), cotangent, sizes, _BY_RUNS)
    for dim, axes in stored:
        of_kernels = jax.lax.psum_scatter(of_kernels, axes, scatter_dimension=dim, tiled=True)
    return of_rows.astype(rows.dtype), of_kernels.astype(kernels.dtype), None


_grouped.defvjp(_forward, _backward)
