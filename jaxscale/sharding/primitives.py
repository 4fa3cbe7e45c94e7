"""What each primitive does to dims: one small function per kind, in a table by the primitive's name.

A rule gets the recorder, the equation and the operands, links the dims that must be split together, and returns the
dims of every output. Only control flow, which holds other programs, is elsewhere (`trace`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from jaxscale.errors import UsageError
from jaxscale.sharding.factors import Dim, Dims, Factors
from jaxscale.sharding.jaxprs import Address, Equation


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
    # The equation and the output that it is; None where that can't be told where to live.
    made_by: tuple[Address, int] | None = None


class Recorder(Protocol):
    """What a rule may do besides returning dims."""

    factors: Factors

    def contraction(
        self, equation: Equation, left: Value, right: Value, contracted: Sequence[Dim], batch: Sequence[Dim]
    ) -> None:
        """Notes a contraction."""

    def reduction(self, equation: Equation, operand: Value, axes: Sequence[int]) -> None:
        """Notes a reduction of `operand` over `axes`."""

    def lookup(self, dim: Dim, *, of_data: bool = False) -> None:
        """Notes that `dim` is indexed by something that depends on the batch, and whether it is one of such itself."""

    def route(self, dim: Dim) -> None:
        """Notes that the batch decides where along `dim` something goes."""

    def join(self, dim: Dim, parts: Sequence[Dim], starts: Sequence[int]) -> None:
        """Notes that `dim` is the concatenation of `parts`."""

    def cut(self, operand: Value, axis: int, start: int, stride: int, part: Dim) -> None:
        """Notes that `part` is a slice of the operand's dim `axis`."""


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
    """Dims whose size the operation does not change are the first operand's; the others are slices of them."""
    return [_cut_from(recorder, inputs[0], shape) for shape in equation.output_shapes]


def _slice(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    starts, strides = equation.params["start_indices"], equation.params["strides"]
    return [_cut_from(recorder, inputs[0], equation.output_shapes[0], starts, strides)]


def _split(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Parts of a dim, one after the other."""
    axis, (operand,) = equation.params["axis"], inputs
    sizes = [shape[axis] for shape in equation.output_shapes]
    parts = [recorder.factors.new_dim(size) for size in sizes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if len(parts) > 1:
        recorder.join(operand.dims[axis], parts, starts)
    return [(*operand.dims[:axis], part, *operand.dims[axis + 1 :]) for part in parts]


def _update_slice(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    operand, update = inputs[:2]
    for mine, theirs, size, part in zip(operand.dims, update.dims, operand.shape, update.shape, strict=True):
        if size == part:
            recorder.factors.link(mine, theirs)
    return [operand.dims]


def _chosen(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """The largest along a dim: which they are depends on the values."""
    operand = inputs[0]
    axis = equation.params.get("axis", equation.params.get("reduction_dimension", len(operand.shape) - 1))
    if operand.is_data:
        recorder.route(operand.dims[axis])
    return _kept_where_whole(recorder, equation, inputs)


def _compared(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Elementwise; whole numbers of the batch compared with all numbers of a dim say which class each belongs to."""
    made = _elementwise(recorder, equation, inputs)
    if any(v.is_data for v in inputs) and all(_is_whole_number(variable) for variable in equation.inputs):
        for axis, dim in enumerate(made[0]):
            sizes = {v.is_data: v.shape[axis] for v in inputs if len(v.shape) == len(made[0])}
            if sizes.get(True) == 1 and sizes.get(False, 1) > 1:
                recorder.route(dim)
                recorder.lookup(dim)
    return made


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
        if equation.name.startswith("arg") and operand.is_data:
            for axis in axes:
                recorder.route(operand.dims[axis])
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


def _ragged_dot(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Rows that lie in runs, each contracted with the right operand's part for its run; or summed run by run."""
    left, right, sizes = inputs[:3]
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (left_contracted, right_contracted), (left_batch, right_batch) = numbers.dot_dimension_numbers
    for mine, theirs in zip((*left_contracted, *left_batch), (*right_contracted, *right_batch), strict=True):
        recorder.factors.link(left.dims[mine], right.dims[theirs])
    runs = sizes.dims[-1]
    for axis in numbers.rhs_group_dimensions:
        recorder.factors.link(right.dims[axis], runs)
    if sizes.is_data:
        recorder.route(runs)
    batch = [left.dims[axis] for axis in left_batch]
    gone = {*right_contracted, *right_batch, *numbers.rhs_group_dimensions}
    left_free = [dim for axis, dim in enumerate(left.dims) if axis not in {*left_contracted, *left_batch}]
    right_free = [dim for axis, dim in enumerate(right.dims) if axis not in gone]
    if not numbers.rhs_group_dimensions:
        # What the gradient of the other form is; no rule has a use for it.
        return [(runs, *batch, *left_free, *right_free)]
    recorder.contraction(equation, left, right, [left.dims[axis] for axis in left_contracted], [*batch, runs])
    return [(*batch, *left_free, *right_free)]


def _concatenate(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    axis = equation.params["dimension"]
    dims = list(inputs[0].dims)
    for value in inputs[1:]:
        _link_all(recorder, dims[:axis] + dims[axis + 1 :], value.dims[:axis] + value.dims[axis + 1 :])
    if len(inputs) > 1:
        sizes = [value.shape[axis] for value in inputs]
        dims[axis] = recorder.factors.new_dim(sum(sizes))
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        recorder.join(dims[axis], [value.dims[axis] for value in inputs], starts)
    return [tuple(dims)]


def _stack(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """All operands have the same dims, and the output one more."""
    axis = equation.params["axis"]
    for value in inputs[1:]:
        _link_all(recorder, inputs[0].dims, value.dims)
    dims = inputs[0].dims
    return [(*dims[:axis], recorder.factors.new_dim(len(inputs)), *dims[axis:])]


def _gather(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Rows by index: the dims taken whole are the operand's, the others come from the indices."""
    operand, indices = inputs
    numbers, shape = equation.params["dimension_numbers"], equation.output_shapes[0]
    indexed = set(numbers.start_index_map)
    if indices.is_data:
        for axis in indexed - {a for a in indexed if equation.params["slice_sizes"][a] == operand.shape[a]}:
            recorder.lookup(operand.dims[axis], of_data=operand.is_data)
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


def _scatter(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """Updates put where the indices say: what is taken whole has the operand's dims, the others the indices'."""
    operand, indices, updates = inputs
    numbers = equation.params["dimension_numbers"]
    if indices.is_data:
        for axis in numbers.scatter_dims_to_operand_dims:
            recorder.route(operand.dims[axis])
    for mine, theirs in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        recorder.factors.link(operand.dims[mine], indices.dims[theirs])
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(operand.shape)) if axis not in gone]
    for axis, target in zip(numbers.update_window_dims, kept, strict=True):
        if updates.shape[axis] == operand.shape[target]:
            recorder.factors.link(updates.dims[axis], operand.dims[target])
    others = [axis for axis in range(len(updates.shape)) if axis not in numbers.update_window_dims]
    _link_all(recorder, [updates.dims[axis] for axis in others], indices.dims[:-1])
    return [operand.dims]


def _convolution(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    """A contraction over input channels and the window; groups of channels are a batch dim of it."""
    data, kernel = inputs
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    (examples, channels, *places), (out, taken, *window) = numbers.lhs_spec, numbers.rhs_spec
    shape = equation.output_shapes[0]
    dims = list(recorder.factors.new_dims(shape))
    groups_in = recorder.factors.take(data.dims[channels], groups)
    groups_out = recorder.factors.take(kernel.dims[out], groups)
    if equation.params["batch_group_count"] != 1 or groups_in is None or groups_out is None:
        return [tuple(dims)]
    recorder.factors.link(groups_in[0], groups_out[0])
    recorder.factors.link(groups_in[1], kernel.dims[taken])
    contracted = [groups_in[1], *(kernel.dims[axis] for axis in window)]
    recorder.contraction(equation, data, kernel, contracted, [groups_in[0]])
    dims[numbers.out_spec[0]], dims[numbers.out_spec[1]] = data.dims[examples], kernel.dims[out]
    for axis, place in zip(numbers.out_spec[2:], places, strict=True):
        if shape[axis] == data.shape[place]:
            dims[axis] = data.dims[place]
        else:
            recorder.cut(data, place, 0, 0, dims[axis])
    return [tuple(dims)]


def _sorted(recorder: Recorder, equation: Equation, inputs: Sequence[Value]) -> list[Dims]:
    for value in inputs[1:]:
        _link_all(recorder, inputs[0].dims, value.dims)
    if any(value.is_data for value in inputs):
        recorder.route(inputs[0].dims[equation.params["dimension"]])
    return _positional(recorder, equation, inputs)


def _link_all(recorder: Recorder, left: Sequence[Dim], right: Sequence[Dim]) -> None:
    for mine, theirs in zip(left, right, strict=True):
        recorder.factors.link(mine, theirs)


def _cut_from(
    recorder: Recorder,
    operand: Value,
    shape: tuple[int, ...],
    starts: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Dims:
    """The operand's dims where they keep their size, elsewhere slices of them; a stride of 0 where it is not known."""
    made: list[Dim] = []
    for axis, (dim, mine, size) in enumerate(zip(operand.dims, operand.shape, shape, strict=True)):
        made.append(dim if size == mine else recorder.factors.new_dim(size))
        if size != mine:
            stride = 0 if starts is None else 1 if strides is None else strides[axis]
            recorder.cut(operand, axis, starts[axis] if starts else 0, stride, made[-1])
    return tuple(made)


def _is_whole_number(variable: Any) -> bool:
    return bool(jax.numpy.issubdtype(variable.aval.dtype, jax.numpy.integer))


_RULES_BY_NAMES: dict[str, Rule] = {
    # One value per element, of elements in the same place.
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq_to erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic
    lt lt_to max min mul ne neg nextafter not or population_count pow pvary real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta""": _elementwise,
    # Along a dim, which keeps its size.
    "cumlogsumexp cummax cummin cumprod cumsum rev": _elementwise,
    "eq": _compared,
    "optimization_barrier ppermute psum pmax pmin psum_invariant": _positional,
    "sort": _sorted,
    "slice": _slice,
    "split": _split,
    "dynamic_slice pad reduce_window_sum reduce_window_max reduce_window_min": _kept_where_whole,
    "dynamic_update_slice": _update_slice,
    "top_k approx_top_k": _chosen,
    "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max scatter_add scatter_sub scatter_mul": _scatter,
    "conv_general_dilated": _convolution,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin": _reduce,
    "dot_general": _dot_general,
    "ragged_dot ragged_dot_general": _ragged_dot,
    "concatenate": _concatenate,
    "stack": _stack,
    "gather": _gather,
    # Made from nothing, or from keys.
    """axis_index debug_callback debug_print iota empty empty2 platform_index random_bits random_clone random_fold_in
    random_gamma random_seed random_split random_unwrap random_wrap rng_bit_generator rng_uniform
    threefry2x32""": links_nothing,
}

# Those that put what they take where the batch says, or take it from there.
MOVES = frozenset(
    name for name in ("gather", *(n for names in _RULES_BY_NAMES for n in names.split() if "scatter" in n))
)

RULES: dict[str, Rule] = {name: rule for names, rule in _RULES_BY_NAMES.items() for name in names.split()}


def register_primitive(name: str, rule: Rule) -> None:
    """Teaches the trace a primitive that it does not know.

    Args:
      name: the primitive's.
      rule: a pure function of (recorder, equation, operands) that links the dims which must be split together through
        `recorder.factors.link`, notes contractions, and returns the dims of every output.

    Raises:
      UsageError: the primitive has a rule already.
    """
    if name in RULES:
        raise UsageError(
            f"primitive {name!r} has a sharding rule already; only one that is not understood can be given one"
        )
    RULES[name] = rule


def num_elements(shape: tuple[int, ...]) -> int:
    """How many numbers an array of `shape` has."""
    return math.prod(shape)
