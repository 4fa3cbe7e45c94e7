"""What each primitive does to marks on axes: one small function per kind, in a table by the primitive's name.

A rule gets the diary, the equation and the marks of its operands' axes, and returns those of every output. What has no
rule here loses the marks of its operands, and that is noted.
"""

import math
from collections.abc import Callable, Sequence

from jaxscale.sharding import jaxprs, primitives
from jaxscale.sharding.jaxprs import Equation
from jaxscale.sharding.marks import ANY_ORDER, AnyOrder, Axes, Axis, Diary, is_mark, unmarked

Rule = Callable[[Diary, Equation, Sequence[Axes]], list[Axes]]


def lost(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    """No marks come out, and those that go in are lost."""
    for axes in inputs:
        diary.lose(axes)
    return [unmarked(variable) for variable in equation.outputs]


def _elementwise(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    made = []
    for variable in equation.outputs:
        rank = len(jaxprs.shape_of(variable))
        whole = [axes for axes in inputs if len(axes) == rank]
        made.append(tuple(diary.meet([axes[i] for axes in whole], i) for i in range(rank)))
    return made


def _along_an_axis(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    params = equation.params
    return _except(diary, inputs[0], params["dimensions"] if "dimensions" in params else (params["axis"],))


def _positional(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    return list(inputs)


def _transpose(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    return [tuple(inputs[0][axis] for axis in equation.params["permutation"])]


def _squeeze(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    # A mark on one element says nothing.
    gone = set(equation.params["dimensions"])
    return [tuple(axis for i, axis in enumerate(inputs[0]) if i not in gone)]


def _broadcast(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    made: list[Axis] = [ANY_ORDER] * len(shape)
    for place, axis, size in zip(places, inputs[0], jaxprs.shape_of(equation.inputs[0]), strict=True):
        if size == shape[place]:
            made[place] = axis
    return [tuple(made)]


def _reduce(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    gone = set(equation.params["axes"])
    return [tuple(axis for i, axis in enumerate(axes) if i not in gone) for axes in inputs[: len(equation.outputs)]]


def _arg_reduce(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    diary.lose(inputs[0], among=equation.params["axes"])
    return _reduce(diary, equation, inputs)


def _dot_general(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    left, right = inputs
    (left_contracted, right_contracted), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for mine, theirs in zip(left_contracted, right_contracted, strict=True):
        diary.meet([left[mine], right[theirs]], mine)
    batch = [diary.meet([left[i], right[j]], i) for i, j in zip(left_batch, right_batch, strict=True)]
    frees = []
    for axes, gone in ((left, {*left_contracted, *left_batch}), (right, {*right_contracted, *right_batch})):
        free = [i for i in range(len(axes)) if i not in gone]
        diary.made_by_matmul(axes, free)
        frees += [axes[i] for i in free]
    return [(*batch, *frees)]


def _slice(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    params, shape = equation.params, jaxprs.shape_of(equation.inputs[0])
    strides = params["strides"] or (1,) * len(shape)
    made: list[Axis] = []
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for i, (axis, size, (start, stop, stride)) in enumerate(zip(inputs[0], shape, bounds, strict=True)):
        if not is_mark(axis) or (start, stop, stride) == (0, size, 1):
            made.append(axis)
            continue
        diary.cut(axis, i, [(start, stop)], stride)
        made.append(axis.taken(start, stop) if stride == 1 else None)
    return [tuple(made)]


def _split(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    at, sizes = equation.params["axis"], equation.params["sizes"]
    axis, stops = inputs[0][at], [sum(sizes[: i + 1]) for i in range(len(sizes))]
    windows = [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    if is_mark(axis) and len(windows) > 1:
        diary.cut(axis, at, windows)
    pieces = [axis.taken(*window) if is_mark(axis) else axis for window in windows]
    return [(*inputs[0][:at], piece, *inputs[0][at + 1 :]) for piece in pieces]


def _dynamic_slice(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    """Picks at places that are not known here."""
    old, (new,) = jaxprs.shape_of(equation.inputs[0]), equation.output_shapes
    return _except(diary, inputs[0], [i for i, size in enumerate(old) if size != new[i]])


def _pad(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    return _except(diary, inputs[0], [i for i, amounts in enumerate(equation.params["padding_config"]) if any(amounts)])


def _except(diary: Diary, axes: Axes, changed: Sequence[int]) -> list[Axes]:
    """One output with the axes of an operand but those that are changed, whose marks are lost."""
    diary.lose(axes, among=changed)
    return [tuple(None if i in changed else axis for i, axis in enumerate(axes))]


def _concatenate(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    along = equation.params["dimension"]
    for axes in inputs:
        diary.lose(axes, among=[along])
    joined = [diary.meet(axes, i) for i, axes in enumerate(zip(*inputs, strict=True)) if i != along]
    return [(*joined[:along], None, *joined[along:])]


def _iota(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    rank = len(equation.output_shapes[0])
    return [tuple(None if i == equation.params["dimension"] else ANY_ORDER for i in range(rank))]


def _gather(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    """Axes of the operand that are taken whole come out; any mark else is lost."""
    operand, indices = inputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = jaxprs.shape_of(equation.inputs[0])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(shape)) if i not in gone]
    made: list[Axis] = list(unmarked(equation.outputs[0]))
    for place, source in zip(numbers.offset_dims, kept, strict=True):
        if sizes[source] == shape[source]:
            made[place] = operand[source]
    diary.lose(operand, among=[i for i in range(len(shape)) if i in gone or sizes[i] != shape[i]])
    diary.lose(indices)
    return [tuple(made)]


def _reshape(diary: Diary, equation: Equation, inputs: Sequence[Axes]) -> list[Axes]:
    """Runs of axes become runs of axes of the same product; axes of size 1 belong to none."""
    old, new = jaxprs.shape_of(equation.inputs[0]), equation.output_shapes[0]
    made: list[Axis] = [ANY_ORDER if size == 1 else None for size in new]
    for olds, news in _runs(old, new):
        axes = [inputs[0][i] for i in olds]
        if all(isinstance(axis, AnyOrder) for axis in axes):
            for j in news:
                made[j] = ANY_ORDER
        elif len(news) == 1 and not any(is_mark(axis) for axis in axes[1:]):
            first = axes[0]
            made[news[0]] = first.merged(math.prod(old[i] for i in olds[1:])) if is_mark(first) else None
        elif len(olds) == 1 and is_mark(first := axes[0]):
            sizes = tuple(new[j] for j in news)
            diary.taken_apart(first, olds[0], sizes)
            made[news[0]] = first.taken_apart(sizes)
        else:
            diary.lose(inputs[0], among=olds)
    return [tuple(made)]


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes, none of size 1, whose products agree.

    >>> _runs((4, 1, 6), (2, 2, 6, 1))
    [([0], [0, 1]), ([2], [2])]
    """
    runs: list[tuple[list[int], list[int]]] = []
    if 0 in old:
        return runs
    olds, news = ([i for i, size in enumerate(shape) if size > 1] for shape in (old, new))
    while olds:
        mine, theirs = [olds.pop(0)], [news.pop(0)]
        while (left := math.prod(old[i] for i in mine)) != (right := math.prod(new[j] for j in theirs)):
            if left < right:
                mine.append(olds.pop(0))
            else:
                theirs.append(news.pop(0))
        runs.append((mine, theirs))
    return runs


_ALIKE = (primitives.RULES["add"], primitives.RULES["eq"])
_RULES_BY_NAMES: dict[str, Rule] = {
    " ".join(name for name, rule in primitives.RULES.items() if rule in _ALIKE): _elementwise,
    # Not elementwise after all, where the order matters.
    "cumlogsumexp cummax cummin cumprod cumsum rev": _along_an_axis,
    "optimization_barrier": _positional,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor": _reduce,
    "argmax argmin": _arg_reduce,
    "dot_general": _dot_general,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "iota": _iota,
    "gather": _gather,
    "reshape": _reshape,
}

RULES: dict[str, Rule] = {name: rule for names, rule in _RULES_BY_NAMES.items() for name in names.split()}
