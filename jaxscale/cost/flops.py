"""FLOPs of a program, counted on its jaxpr and multiplied by the trip counts of its scans.

A contraction counts two operations, a multiplication and an addition, per product. Everything else is counted apart,
one operation per element, as `elementwise`: it runs on other units.
"""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Branches, Call, Equation, Program, Scan, While

# Primitives that move or name values and compute none.
_MOVE_NAMES = """bitcast_convert_type broadcast_in_dim concatenate copy copy_p convert_element_type device_put
dynamic_slice dynamic_update_slice empty empty2 gather iota name optimization_barrier pad pvary random_seed
random_unwrap random_wrap reshape rev scatter sharding_constraint slice split squeeze stack stop_gradient transpose"""
# Primitives whose work is per element of what they read.
_BY_INPUT_NAMES = """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
scatter-add scatter_add scatter-mul sort top_k"""
_MOVES, _BY_INPUT = frozenset(_MOVE_NAMES.split()), frozenset(_BY_INPUT_NAMES.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopCount:
    """What a program computes, on all devices together.

    Attributes:
      contractions: FLOPs of matrix products and convolutions, by the dtype of their operands.
      elementwise: operations of everything else, one per element.
      unbounded_loops: the user's lines with a `while` whose length no one knows; its body is counted once.
      not_counted: primitives that hold programs nobody here understands, with the user's line.
    """

    contractions: dict[str, int] = dataclasses.field(default_factory=dict)
    elementwise: int = 0
    unbounded_loops: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """FLOPs of all contractions: what is meant by a model's FLOPs."""
        return sum(self.contractions.values())

    def times(self, number: int) -> "FlopCount":
        """The count of as many runs."""
        contractions = {dtype: flops * number for dtype, flops in self.contractions.items()}
        return dataclasses.replace(self, contractions=contractions, elementwise=self.elementwise * number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """FLOPs that a step's mathematics needs, however it is computed: nothing is counted that `remat` does again.

    Attributes:
      forward: of the loss.
      backward: one contraction as large as the forward one for each operand that depends on the parameters.
      between_data: the part of both in which what depends on the batch is contracted with what does: attention.
    """

    forward: int
    backward: int
    between_data: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def causal_halved(self) -> int:
        """The total with `between_data` halved, as where all of it is causal attention that skips masked blocks.

        Reference: Dao 2023 (FlashAttention-2), section 4.1, https://arxiv.org/abs/2307.08691
        """
        return self.total - self.between_data // 2

    def times(self, number: int) -> "ModelFlops":
        """The FLOPs of as many runs."""
        return ModelFlops(**{f.name: getattr(self, f.name) * number for f in dataclasses.fields(self)})


def count_flops(program: Program) -> FlopCount:
    """Counts a program: scans times their length, of a `cond` the branch with most contractions, a `while` once.

    Args:
      program: such as `programs.gradient_program` makes; of one with `remat`, what it computes again is counted again.

    >>> import jax
    >>> x, w = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8, 2), "float32")
    >>> count_flops(jaxprs.trace(lambda x, w: x @ w + 1.0, x, w))
    FlopCount(contractions={'float32': 128}, elementwise=8, unbounded_loops=(), not_counted=())
    """
    return _sum(_count_equation(equation) for equation in program.equations)


def count_model_flops(program: Program, num_params: int, frozen: Collection[int] = ()) -> ModelFlops:
    """The FLOPs of a training step by the loss's program alone, by the closed rule for the backward pass.

    The gradient of a contraction is one contraction of the same FLOPs for each operand that has a gradient; so 3 times
    the forward pass where both operands depend on parameters, twice where the other is frozen or the batch as it came.
    A `stop_gradient` leaves no trace in a loss's program, so what is behind one is counted as if it had a gradient.

    Args:
      program: of the loss, as `programs.forward_program` makes it.
      num_params: how many of its first inputs are parameters; the others are the batch.
      frozen: the positions of those that have no gradient.

    Reference: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311
    """
    params = [_FROM_NOTHING if position in frozen else _FROM_PARAMS for position in range(num_params)]
    walk = _ModelWalk()
    walk.run(program, [*params, *[_FROM_BATCH] * (len(program.inputs) - num_params)], 1)
    return ModelFlops(forward=walk.forward, backward=walk.backward, between_data=walk.between_data)


def contraction_flops(equation: Equation) -> int:
    """FLOPs of one run of a contraction; 0 of any other primitive."""
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = jaxprs.shape_of(equation.inputs[0])
        return 2 * math.prod(equation.output_shapes[0]) * math.prod(left[axis] for axis in contracted)
    if equation.name == "conv_general_dilated":
        kernel, spec = jaxprs.shape_of(equation.inputs[1]), equation.params["dimension_numbers"].rhs_spec
        return 2 * math.prod(equation.output_shapes[0]) * math.prod(kernel) // kernel[spec[0]]
    if equation.name in ("ragged_dot", "ragged_dot_general"):
        return _ragged_flops(equation)
    return 0


def _ragged_flops(equation: Equation) -> int:
    """Each row of the left operand meets one group of the right, so the number of groups does not count."""
    left, right = (jaxprs.shape_of(variable) for variable in equation.inputs[:2])
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, right_contracted), (_, right_batch) = numbers.dot_dimension_numbers
    gone = {*right_contracted, *right_batch, *numbers.rhs_group_dimensions}
    free = math.prod(size for axis, size in enumerate(right) if axis not in gone)
    return 2 * math.prod(left) * free


def _count_equation(equation: Equation) -> FlopCount:
    match jaxprs.inner(equation):
        case Scan(body=body, length=length):
            return count_flops(body).times(length)
        case While(body=body):
            once = count_flops(body)
            return dataclasses.replace(once, unbounded_loops=(*once.unbounded_loops, equation.source or "while"))
        case Branches(branches):
            return max((count_flops(branch) for branch in branches), key=lambda count: (count.total, count.elementwise))
        case Call(program):
            return count_flops(program)
    flops = contraction_flops(equation)
    if flops:
        return FlopCount(contractions={str(equation.inputs[0].aval.dtype): flops})
    if _holds_programs(equation):
        return FlopCount(not_counted=(f"{equation.name} {equation.source}".strip(),))
    return FlopCount(elementwise=_elementwise(equation))


def _elementwise(equation: Equation) -> int:
    if equation.name in _MOVES:
        return 0
    counted = equation.inputs if equation.name in _BY_INPUT else equation.outputs
    return max((math.prod(jaxprs.shape_of(variable)) for variable in counted), default=0)


def _holds_programs(equation: Equation) -> bool:
    """Whether a parameter is a jaxpr, such as a kernel's, except the little ones that say how a scatter combines."""
    return equation.name not in _BY_INPUT | _MOVES and any(
        hasattr(value, "eqns") or hasattr(value, "jaxpr") for value in equation.params.values()
    )


def _sum(counts: Iterable[FlopCount]) -> FlopCount:
    contractions: collections.Counter[str] = collections.Counter()
    elementwise, loops, unknown = 0, dict[str, None](), dict[str, None]()
    for count in counts:
        contractions.update(count.contractions)
        elementwise += count.elementwise
        loops.update(dict.fromkeys(count.unbounded_loops))
        unknown.update(dict.fromkeys(count.not_counted))
    return FlopCount(
        contractions=dict(sorted(contractions.items())),
        elementwise=elementwise,
        unbounded_loops=tuple(loops),
        not_counted=tuple(unknown),
    )


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Whether a value depends on the parameters, so that it has a gradient, and whether on the batch."""

    params: bool
    batch: bool

    def __or__(self, other: "_Origin") -> "_Origin":
        return _Origin(self.params or other.params, self.batch or other.batch)


_FROM_NOTHING, _FROM_PARAMS, _FROM_BATCH = _Origin(False, False), _Origin(True, False), _Origin(False, True)


class _ModelWalk:
    """One walk through a loss that knows of every value what it depends on."""

    def __init__(self) -> None:
        self.forward = self.backward = self.between_data = 0

    def run(self, program: Program, arguments: Sequence[_Origin], num_runs: int) -> list[_Origin]:
        """Walks a program that is run `num_runs` times; returns the origins of its outputs."""
        known: dict[Any, _Origin] = dict(zip(program.inputs, arguments, strict=True))

        def read(variable: Any) -> _Origin:
            return _FROM_NOTHING if jaxprs.is_literal(variable) else known.get(variable, _FROM_NOTHING)

        for equation in program.equations:
            made = self._apply(equation, [read(variable) for variable in equation.inputs], num_runs)
            known.update(zip(equation.outputs, made, strict=True))
        return [read(variable) for variable in program.outputs]

    def _apply(self, equation: Equation, inputs: list[_Origin], num_runs: int) -> list[_Origin]:
        match jaxprs.inner(equation):
            case Scan() as scan:
                return self._loop(scan.body, scan.num_consts, scan.num_carry, inputs, num_runs * scan.length)
            case While() as loop:
                given = inputs[loop.num_cond_consts :]
                num_carry = len(given) - loop.num_body_consts
                return self._loop(loop.body, loop.num_body_consts, num_carry, given, num_runs)
            case Branches(branches):
                return self._branches(branches, inputs[1:], num_runs)
            case Call(program):
                return self.run(program, inputs, num_runs)
        flops = contraction_flops(equation) * num_runs
        if flops:
            self._contract(flops, inputs[0], inputs[1])
        origin = _FROM_NOTHING
        for value in inputs:
            origin = origin | value
        return [_made(variable, origin) for variable in equation.outputs]

    def _contract(self, flops: int, left: _Origin, right: _Origin) -> None:
        backward = flops * (left.params + right.params)
        self.forward += flops
        self.backward += backward
        if left.batch and right.batch:
            self.between_data += flops + backward

    def _loop(
        self, body: Program, num_consts: int, num_carry: int, inputs: list[_Origin], num_runs: int
    ) -> list[_Origin]:
        """A carry may begin with nothing and meet the parameters in the body: walked until nothing is new."""
        consts, carry, slices = inputs[:num_consts], inputs[num_consts : num_consts + num_carry], inputs[num_consts:]
        slices = slices[num_carry:]
        while True:
            before = (self.forward, self.backward, self.between_data)
            made = self.run(body, [*consts, *carry, *slices], num_runs)
            carried = [old | new for old, new in zip(carry, made[:num_carry], strict=True)]
            if carried == carry:
                return [*carried, *made[num_carry:]]
            self.forward, self.backward, self.between_data = before
            carry = carried

    def _branches(self, branches: Sequence[Program], inputs: list[_Origin], num_runs: int) -> list[_Origin]:
        """The branch with most FLOPs is counted; a result may come from any of them."""
        before = (self.forward, self.backward, self.between_data)
        counts, results = [], []
        for branch in branches:
            self.forward, self.backward, self.between_data = before
            results.append(self.run(branch, inputs, num_runs))
            counts.append((self.forward, self.backward, self.between_data))
        self.forward, self.backward, self.between_data = max(counts)
        origins = results[0]
        for other in results[1:]:
            origins = [mine | theirs for mine, theirs in zip(origins, other, strict=True)]
        return origins


def _made(variable: Any, origin: _Origin) -> _Origin:
    """An output's origin: integers have no gradient."""
    kind: Any = getattr(getattr(variable.aval, "dtype", None), "kind", "V")
    # bfloat16 and the 8-bit floats are of kind V to numpy; keys have no dtype of numpy's.
    return dataclasses.replace(origin, params=origin.params and kind in "fcV")
