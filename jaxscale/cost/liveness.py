"""Which values of a gradient's program a device holds at the worst moment.

What lives when is read off the program in its order, every value divided as the plan splits it. Assumed of a compiler:

* an operation on elements is fused with what reads it: its result is held only where a loop reads it, the program
  returns it, or two others read it; cheap ones (a broadcast, a comparison) are repeated in every reader, and work on
  elements whose results have its shape reads it in one pass that writes them all;
* inside a loop a narrower copy of a computed value that two others read is held, and the wider value is not: the
  weights of attention, which both of its later contractions read, are there in float32 and in bfloat16;
* a matmul whose result is only read in a narrower type writes that type;
* of two matmuls that read a cotangent the one for a weight's gradient runs first where that is to be scattered, so
  that it is scattered meanwhile: the other's gathered weight is still there; one of data with data runs as late as it
  can, so that what it reads is there until something reads its result;
* a reduction runs as soon as it can, so that what only it reads is soon given up;
* a result of such an operation takes the place of a value of its size that nothing needs any more, but for a narrower
  copy inside a loop;
* a loop holds its inputs, its whole outputs, and the most that one pass through its body holds; what it carries is
  changed in place;
* weights that a scan's body casts before all else are cast, all layers at once, before the scan;
* weights that are stored over `fsdp` are whole while the operation that reads them runs, and so is a gradient until it
  has been scattered; what several matmuls of one program read is gathered once, and whole from the first to the last,
  as the output's table is from the logits to their gradient; those that are gathered once for all microbatches are
  there whole, as narrow as they are read, and not made again.

Padding to a device's tiles, fragmentation and the code itself are not counted.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxscale.cost.placement import Key, Placement
from jaxscale.sharding import jaxprs
from jaxscale.sharding.first_reads import first_casts
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan, While

_CHEAP_NAMES = """and bitcast_convert_type broadcast_in_dim convert_element_type copy eq expand_dims ge gt iota le lt ne
neg name not optimization_barrier or pvary reduce_precision reshape sharding_constraint slice squeeze stop_gradient
transpose"""
# Operations that are not fused with their readers; a result is held.
_HELD_NAMES = """argmax argmin concatenate conv_general_dilated cumlogsumexp cummax cummin cumprod cumsum custom_call
dot_general dynamic_update_slice gather pallas_call ragged_dot ragged_dot_general random_bits reduce_max reduce_min
reduce_prod reduce_sum rng_bit_generator scatter scatter-add scatter_add shard_map sort threefry2x32 top_k"""
_REDUCTIONS = frozenset({"reduce_max", "reduce_min", "reduce_prod", "reduce_sum"})
_UNSCATTERED = "gradient before it is scattered"
_CHEAP, _HELD = frozenset(_CHEAP_NAMES.split()), frozenset(_HELD_NAMES.split())


@dataclasses.dataclass(frozen=True)
class Held:
    """One value in memory.

    Attributes:
      what: the operation that made it.
      source: the user's line that made it.
      shape: of the whole array.
      dtype: its name.
      num_bytes: of one device's part.
      is_gradient: whether it is a parameter's gradient.
      is_kept: whether the forward pass made it and the backward pass still needs it.
    """

    what: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    is_gradient: bool = False
    is_kept: bool = False


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is held at one moment, besides the program's inputs."""

    values: tuple[Held, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of all that is held."""
        return sum(value.num_bytes for value in self.values)


@dataclasses.dataclass(frozen=True)
class Liveness:
    """The worst moment of a program, and the one between its forward and its backward pass."""

    worst: Moment
    between_passes: Moment


def follow(program: Program, placement: Placement) -> Liveness:
    """Follows a gradient's program through.

    Args:
      program: its first output is the loss: the forward pass ends where that is made.
      placement: of the same program.
    """
    walk = _Schedule(program, (), placement)
    return Liveness(walk.worst(), Moment(tuple(walk.held_after(walk.end_of_forward))))


@dataclasses.dataclass(frozen=True, eq=False)
class _Op:
    """An equation in a flat program: no calls, each loop one operation."""

    equation: Equation
    path: Address
    reads: tuple[Key, ...]
    writes: tuple[Key, ...]
    # What it holds while it runs, besides what it reads and writes.
    inside: tuple[Held, ...]

    @property
    def is_loop(self) -> bool:
        """Whether it holds programs."""
        return not isinstance(jaxprs.inner(self.equation), Call | None)


class _Schedule:
    """A program's operations in their order, with the lifetimes of what they make."""

    def __init__(self, program: Program, path: Address, placement: Placement):
        self._placement = placement
        self._names: dict[Key, Key] = {}
        self._ops = _reduced_early(tuple(self._flat(program, path)))
        self._outputs = [self._name(path, variable) for variable in program.outputs if not jaxprs.is_literal(variable)]
        self._is_outermost = path == ()
        # Numbers repeated: a compiler moves them into the loop that reads them.
        self._repeated = {node for op in self._ops if _is_repeated_number(op.equation) for node in op.writes}
        self._computed = {node for op in self._ops for node in op.writes}
        # Matmuls that write a narrower type than they add up in, and the casts that say so.
        self._rounded, self._rounding = self._find_rounded()
        self._last: dict[Key, int] = {}
        self._is_held: dict[Key, bool] = {}
        self._find_lifetimes()
        self._made_at = {node: i for i, op in enumerate(self._ops) for node in op.writes}
        loss = self._outputs[0] if self._outputs else None
        self.end_of_forward = self._made_at.get(loss, -1) if loss is not None else -1

    def worst(self) -> Moment:
        """The moment when most is held."""
        worst, most = Moment(), 0
        live: dict[Key, Held] = {}
        gathered = self._gathered()
        for i, op in enumerate(self._ops):
            inside = (*op.inside, *(held for first, last, held in gathered if first <= i <= last))
            made = {node: self._describe(op, node) for node in op.writes if self._is_held.get(node)}
            given_up = self._given_up(op, i, live, {value.num_bytes for value in made.values()})
            before = {k: v for k, v in live.items() if k not in given_up}
            values = (*before.values(), *made.values(), *inside)
            total = sum(value.num_bytes for value in values)
            if total > most:
                worst, most = Moment(self._marked({**before, **made}) + inside), total
            live.update(made)
            live = {node: held for node, held in live.items() if self._last.get(node, -1) > i}
        return worst

    def held_after(self, position: int) -> Iterator[Held]:
        """What is held when the operation at `position` has run, but for what the program returns."""
        for op in self._ops[: position + 1]:
            for node in op.writes:
                if self._is_held.get(node) and position < self._last.get(node, -1) < len(self._ops):
                    yield dataclasses.replace(self._describe(op, node), is_kept=True)

    def _marked(self, live: dict[Key, Held]) -> tuple[Held, ...]:
        """What the forward pass makes and the backward pass needs is kept; a loop's body has no such passes."""
        end = self.end_of_forward if self._is_outermost else len(self._ops)
        return tuple(
            dataclasses.replace(held, is_kept=self._made_at[node] <= end < self._last.get(node, -1) < len(self._ops))
            for node, held in live.items()
        )

    def _given_up(self, op: _Op, position: int, live: Mapping[Key, Held], sizes: set[int]) -> set[Key]:
        """What is not needed any more and whose place the results take; work on elements takes places of its size."""
        dying = {node for node in live if self._last.get(node) == position}
        if isinstance(scan := jaxprs.inner(op.equation), Scan):
            carried = op.equation.inputs[scan.num_consts : scan.num_consts + scan.num_carry]
            nodes = {self._name(op.path, variable) for variable in carried if not jaxprs.is_literal(variable)}
            return nodes.intersection(dying)
        if not self._works_on_elements(op) or self._is_narrowing(op):
            return set()
        return {node for node in dying if live[node].num_bytes in sizes}

    def _describe(self, op: _Op, node: Key) -> Held:
        path, variable = node
        dtype = getattr(variable.aval, "dtype", None)
        is_gradient = self._placement.gradient_of(path, variable) is not None
        return Held(
            what=op.equation.name,
            source=op.equation.source,
            shape=jaxprs.shape_of(variable),
            dtype=str(dtype),
            num_bytes=self._placement.bytes_of(path, variable, kept=True),
            is_gradient=is_gradient and self._is_outermost,
        )

    def _find_lifetimes(self) -> None:
        """From the end to the beginning: how long each value is needed, and whether it is held at all."""
        readers: dict[Key, set[int]] = {}
        end = len(self._ops)
        for node in self._outputs if self._is_outermost else ():
            self._last[node], self._is_held[node] = end, True
        for i in reversed(range(end)):
            op = self._ops[i]
            until, anchors = i, {i}
            if self._is_fused(op):
                found = set().union(*(readers.get(node, set()) for node in op.writes))
                is_held = any(self._is_held.get(node) for node in op.writes)
                is_cheap = op.equation.name in _CHEAP and not self._is_narrowing(op)
                is_held = is_held or (len(found) > 1 and not is_cheap and not self._in_one_pass(op, found))
                if not is_held:
                    until = max((self._last.get(node, i) for node in op.writes), default=i)
                    anchors = found
            else:
                is_held = True
                if self._meets_data(op):
                    until = min(set().union(*(readers.get(node, set()) for node in op.writes)), default=i)
            for node in op.writes:
                self._is_held[node] = self._is_held.get(node, False) or is_held
            for node in op.reads:
                self._last[node] = max(self._last.get(node, -1), until)
                readers[node] = readers.get(node, set()) | anchors
                if op.is_loop and node not in self._repeated:
                    self._is_held[node] = True

    def _meets_data(self, op: _Op) -> bool:
        """Whether it is a matmul of data with data that makes no weight's gradient."""
        if (
            op.equation.name != "dot_general"
            or self._placement.gradient_of(op.path, op.equation.outputs[0]) is not None
        ):
            return False
        return all(self._placement.is_data(op.path, variable) for variable in op.equation.inputs)

    def _is_fused(self, op: _Op) -> bool:
        """Whether it runs within what reads its result."""
        return op in self._rounded or self._works_on_elements(op)

    def _in_one_pass(self, op: _Op, readers: set[int]) -> bool:
        """Whether those who read a result are work on elements of its shape, which can be done at once."""
        shape = jaxprs.shape_of(op.equation.outputs[0])
        found = [self._ops[i] for i in readers]
        return all(self._works_on_elements(r) and jaxprs.shape_of(r.equation.outputs[0]) == shape for r in found)

    def _works_on_elements(self, op: _Op) -> bool:
        return not op.is_loop and op.equation.name not in _HELD and op not in self._rounding

    def _find_rounded(self) -> tuple[set[_Op], set[_Op]]:
        """Matmuls whose result one cast to a narrower type alone reads, and those casts."""
        readers: dict[Key, list[_Op]] = {}
        for op in self._ops:
            for node in op.reads:
                readers.setdefault(node, []).append(op)
        rounded, rounding = set(), set()
        for op in self._ops:
            found = readers.get(op.writes[0], []) if op.equation.name == "dot_general" else []
            if len(found) == 1 and _narrows(found[0].equation) and op.writes[0] not in self._outputs:
                rounded.add(op)
                rounding.add(found[0])
        return rounded, rounding

    def _is_narrowing(self, op: _Op) -> bool:
        """Whether it makes a narrower copy of a value that is computed in this loop."""
        if self._is_outermost or not op.reads or not _narrows(op.equation):
            return False
        return op.reads[0] in self._computed and self._placement.is_data(op.path, op.equation.inputs[0])

    def _flat(self, program: Program, path: Address) -> Iterator[_Op]:
        for position, equation in enumerate(program.equations):
            inner_path = (*path, position)
            inner = jaxprs.inner(equation)
            if isinstance(inner, Call):
                for variable, argument in zip(inner.program.inputs, equation.inputs, strict=True):
                    if not jaxprs.is_literal(argument):
                        self._names[(inner_path, variable)] = self._name(path, argument)
                yield from self._flat(inner.program, inner_path)
                for variable, result in zip(equation.outputs, inner.program.outputs, strict=True):
                    if not jaxprs.is_literal(result):
                        self._names[(path, variable)] = self._name(inner_path, result)
                continue
            reads = (self._name(path, v) for v in equation.inputs if not jaxprs.is_literal(v))
            inside = self._inside(inner, inner_path) + self._whole_gradients(equation, path)
            if isinstance(inner, Scan):
                inside += self._cast_ahead(equation, inner, path)
            yield _Op(equation, path, tuple(reads), tuple((path, v) for v in equation.outputs), inside)

    def _name(self, path: Address, variable: Any) -> Key:
        return self._names.get((path, variable), (path, variable))

    def _inside(self, inner: Any, path: Address) -> tuple[Held, ...]:
        match inner:
            case Scan() | While():
                return _Schedule(inner.body, path, self._placement).worst().values
            case Branches(branches):
                moments = [_Schedule(b, (*path, i), self._placement).worst() for i, b in enumerate(branches)]
                return max(moments, key=lambda moment: moment.num_bytes).values
        return ()

    def _cast_ahead(self, equation: Equation, scan: Scan, path: Address) -> tuple[Held, ...]:
        """Narrower copies of stacked weights, which compilers make of all layers before the loop."""
        given, held = scan.num_consts + scan.num_carry, []
        casts = first_casts(scan.body)
        for outer, variable in zip(equation.inputs[given:], scan.body.inputs[given:], strict=True):
            dtype = casts.get(variable)
            if dtype is None or self._placement.is_data(path, outer) or self._placement.is_gathered(path, outer):
                continue
            part = self._placement.bytes_of(path, outer, kept=True)
            size = part * dtype.itemsize // outer.aval.dtype.itemsize
            shape = jaxprs.shape_of(outer)
            if size < part:
                held.append(
                    Held(what="cast weights", source=equation.source, shape=shape, dtype=str(dtype), num_bytes=size)
                )
        return tuple(held)

    def _whole_gradients(self, equation: Equation, path: Address) -> tuple[Held, ...]:
        """What gradients that are not scattered yet take above their stored parts."""
        if equation.name not in _HELD:
            return ()
        made = (v for v in equation.outputs if self._placement.gradient_of(path, v) is not None)
        held = (self._above_stored(equation, path, v, _UNSCATTERED) for v in made)
        return tuple(one for one in held if one.num_bytes)

    def _gathered(self) -> list[tuple[int, int, Held]]:
        """Weights that matmuls with data read, above their stored parts: the first and the last that reads them."""
        root: dict[Key, Key] = {}
        found: dict[tuple[Key, str], tuple[int, int, Held]] = {}
        # By what meets such weights in a matmul: those weights.
        meeting: dict[Key, set[tuple[Key, str]]] = {}
        for i, op in enumerate(self._ops):
            if op.equation.name in _CHEAP and len(op.reads) == 1:
                root[op.writes[0]] = root.get(op.reads[0], op.reads[0])
            if op.equation.name not in _HELD:
                continue
            data = [self._placement.is_data(op.path, variable) for variable in op.equation.inputs]
            if op.equation.name == "dot_general" and any(held.what == _UNSCATTERED for held in op.inside):
                for at in {at for node in op.reads for at in meeting.get(node, ())}:
                    first, _, held = found[at]
                    found[at] = (first, i, held)
            for variable, is_data in zip(op.equation.inputs, data, strict=True):
                if is_data or not any(data) or jaxprs.is_literal(variable):
                    continue
                held = self._above_stored(op.equation, op.path, variable, "gathered weights")
                node = self._name(op.path, variable)
                at = (root.get(node, node), held.dtype)
                if held.num_bytes:
                    first, _, before = found.get(at, (i, i, held))
                    found[at] = (first, i, max(before, held, key=lambda one: one.num_bytes))
                    for other in op.reads:
                        meeting.setdefault(other, set()).add(at)
        return list(found.values())

    def _above_stored(self, equation: Equation, path: Address, variable: Any, what: str) -> Held:
        more = self._placement.bytes_of(path, variable) - self._placement.bytes_of(path, variable, kept=True)
        shape, dtype = jaxprs.shape_of(variable), str(variable.aval.dtype)
        return Held(what=what, source=equation.source, shape=shape, dtype=dtype, num_bytes=more)


def _reduced_early(ops: tuple[_Op, ...]) -> tuple[_Op, ...]:
    """The operations with each reduction, and the work on elements for it, moved to where its operands are there."""
    made_by = {node: i for i, op in enumerate(ops) for node in op.writes}
    # The last operation that must have run, and how many reductions in a row after it.
    ready: list[tuple[int, int]] = []
    places = [(i, 0) for i in range(len(ops))]
    for i, op in enumerate(ops):
        before = [made_by[node] for node in op.reads if node in made_by]
        last, num_reductions = max((ready[j] for j in before), default=(-1, 0))
        is_reduction = op.equation.name in _REDUCTIONS
        waits = (op.is_loop or op.equation.name in _HELD) and not is_reduction
        ready.append((i, 0) if waits else (last, num_reductions + is_reduction))
        moved = [i] if is_reduction else []
        while moved:
            j = moved.pop()
            if places[j] > ready[i]:
                places[j] = ready[i]
                moved += [made_by[node] for node in ops[j].reads if node in made_by]
    return tuple(ops[i] for i in sorted(range(len(ops)), key=lambda i: (places[i], i)))


def _narrows(equation: Equation) -> bool:
    """Whether it casts to a narrower type."""
    if equation.name != "convert_element_type":
        return False
    return bool(equation.outputs[0].aval.dtype.itemsize < equation.inputs[0].aval.dtype.itemsize)


def _is_repeated_number(equation: Equation) -> bool:
    return equation.name == "broadcast_in_dim" and jaxprs.shape_of(equation.inputs[0]) == ()
