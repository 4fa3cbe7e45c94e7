"""What each primitive does to dims: one small function per kind, in a table by the primitive's name.

A rule gets the recorder, the equation and the operands, links the dims that must be split together, and returns the
dims of every output. Only control flow, which holds other programs, is elsewhere (`trace`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from jaxscale.sharding.factors import Dim, Dims, Factors
from jaxscale.sharding.jaxprs import Equation


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one value of the program."""

    # Which value it is.
    number: int
    shape: tuple[int, ...]
    dims: Dims
    is_data: bool
    # The parameters (positions among the leaves) it is made from, itself or their gradients; scalars in between and
    # what depends on the batch have none.
    origins: frozenset[int] = frozenset()


class Recorder(Protocol):
    """What a rule may do besides returning dims."""

    factors: Factors

    def contraction(
        self, equation: Equation, left: Value, right: Value, contracted: Sequence[Dim], batch: Sequence[Dim]
    ) -> None:
        """Notes a contraction."""

    def reduction(self, equation: Equation, operand: Value, axes: Sequence[int]) -> None:
        """Notes a reduction of `operand` over `axes`."""

    def lookup(self, dim: Dim) -> None:
        """Notes that `dim` is indexed by something that depends on the batch."""


Rule = Callable[[Recorder, Equation, Sequence[Value]], list[Dims]]


def links_nothing(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Outputs whose dims have nothing to do with the operands': for what has no rule, or makes values from nothing."""
    return [recorder.factors.new_dims(shape) for shape in equation.output_shapes]


def _elementwise(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Operands of the outputs' rank have their dims, except where one of size 1 is repeated; scalars link nothing."""
    made = []
    for shape in equation.output_shapes:
        dims: list[Dim] = []
        for axis, size in enumerate(shape):
            alike = [v.dims[axis] for v in inputs if len(v.shape) == len(shape) and v.shape[axis] == size]
            for other in alike[1:]:
                recorder.factors.link(alike[0], other)
            dims.append(alike[0] if alike else recorder.factors.new_dim(size))
        made.append(tuple(dims))
    return made


def _positional(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Output i is operand i."""
    return [value.dims for value in inputs]


def _kept_where_whole(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Dims whose size the operation does not change are the first operand's: slices and paddings of other dims."""
    operand = inputs[0]
    return [_same_size_dims(recorder, operand, shape) for shape in equation.output_shapes]


def _transpose(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    return [tuple(inputs[0].dims[axis] for axis in equation.params["permutation"])]


def _squeeze(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    gone = set(equation.params["dimensions"])
    return [tuple(dim for axis, dim in enumerate(inputs[0].dims) if axis not in gone)]


def _broadcast(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    dims = list(recorder.factors.new_dims(shape))
    for axis, dim, size in zip(axes, inputs[0].dims, inputs[0].shape, strict=True):
        if size == shape[axis]:
            dims[axis] = dim
    return [tuple(dims)]


def _reshape(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Splits and merges dims: the factors of a run of dims are dealt out to the run of dims of the same product."""
    shape = equation.output_shapes[0]
    if 0 in shape:
        return [recorder.factors.new_dims(shape)]
    made: list[Dim] = []
    rest = tuple(factor for dim in inputs[0].dims for factor in dim)
    for size in shape:
        cut = recorder.factors.take(rest, size)
        if cut is None:
            # 12 * 64 taken apart as 64 * 12: what is left belongs together, but not in these pieces.
            return [(*made, *recorder.factors.new_dims(shape[len(made) :]))]
        dim, rest = cut
        made.append(dim)
    return [tuple(made)]


def _reduce(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    axes = set(equation.params["axes"])
    operands = inputs[: len(equation.outputs)]
    for operand in operands:
        recorder.reduction(equation, operand, sorted(axes))
    return [tuple(dim for axis, dim in enumerate(operand.dims) if axis not in axes) for operand in operands]


def _dot_general(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    left, right = inputs
    (left_contracted, right_contracted), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for mine, theirs in zip((*left_contracted, *left_batch), (*right_contracted, *right_batch), strict=True):
        recorder.factors.link(left.dims[mine], right.dims[theirs])
    batch = [left.dims[axis] for axis in left_batch]
    recorder.contraction(equation, left, right, [left.dims[axis] for axis in left_contracted], batch)
    left_free = [dim for axis, dim in enumerate(left.dims) if axis not in {*left_contracted, *left_batch}]
    right_free = [dim for axis, dim in enumerate(right.dims) if axis not in {*right_contracted, *right_batch}]
    return [(*batch, *left_free, *right_free)]


def _concatenate(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    axis = equation.params["dimension"]
    dims = list(inputs[0].dims)
    for value in inputs[1:]:
        _link_all(recorder, dims[:axis] + dims[axis + 1 :], value.dims[:axis] + value.dims[axis + 1 :])
    if len(inputs) > 1:
        dims[axis] = recorder.factors.new_dim(equation.output_shapes[0][axis])
    return [tuple(dims)]


def _gather(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Rows by index: the dims taken whole are the operand's, the others come from the indices."""
    operand, indices = inputs
    numbers, shape = equation.params["dimension_numbers"], equation.output_shapes[0]
    indexed = set(numbers.start_index_map)
    if indices.is_data:
        for axis in indexed - {a for a in indexed if equation.params["slice_sizes"][a] == operand.shape[a]}:
            recorder.lookup(operand.dims[axis])
    for mine, theirs in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        recorder.factors.link(operand.dims[mine], indices.dims[theirs])
    dims = list(recorder.factors.new_dims(shape))
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(operand.shape)) if axis not in gone]
    for axis, source in zip(numbers.offset_dims, kept, strict=True):
        if shape[axis] == operand.shape[source]:
            dims[axis] = operand.dims[source]
    # The last dim of the indices is the index vector; the others stand, in order, where no offset dim does.
    others = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    for axis, dim in zip(others, indices.dims[:-1], strict=True):
        dims[axis] = dim
    return [tuple(dims)]


def _sorted(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    for value in inputs[1:]:
        _link_all(recorder, inputs[0].dims, value.dims)
    return _positional(recorder, equation, inputs)


def _link_all(recorder: Recorder, left: Sequence[Dim], right: Sequence[Dim]) -> None:
    for mine, theirs in zip(left, right, strict=True):
        recorder.factors.link(mine, theirs)


def _same_size_dims(recorder: Recorder, operand: Value, shape: tuple[int, ...]) -> Dims:
    return tuple(
        dim if size == mine else recorder.factors.new_dim(size)
        for dim, mine, size in zip(operand.dims, operand.shape, shape, strict=True)
    )


_RULES_BY_NAMES: dict[str, Rule] = {
    # One value per element, of elements in the same place.
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic
    lt lt_to max min mul ne neg nextafter not or population_count pow pvary real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta""": _elementwise,
    # Along a dim, which keeps its size.
    "cumlogsumexp cummax cummin cumprod cumsum rev": _elementwise,
    "optimization_barrier": _positional,
    "sort": _sorted,
    "slice dynamic_slice dynamic_update_slice pad split top_k": _kept_where_whole,
    "scatter scatter-add scatter-mul scatter-min scatter-max scatter_add scatter_mul": _kept_where_whole,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin": _reduce,
    "dot_general": _dot_general,
    "concatenate": _concatenate,
    "gather": _gather,
    # Made from nothing, or from keys.
    """debug_callback debug_print iota empty empty2 platform_index random_bits random_clone random_fold_in
    random_gamma random_seed random_split random_unwrap random_wrap rng_bit_generator rng_uniform
    threefry2x32""": links_nothing,
}

RULES: dict[str, Rule] = {name: rule for names, rule in _RULES_BY_NAMES.items() for name in names.split()}


def num_elements(shape: tuple[int, ...]) -> int:
    """How many numbers an array of `shape` has."""
    return math.prod(shape)
