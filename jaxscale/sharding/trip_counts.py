"""How often the loops of a compiled program run: as the compiler says, else proven from the loop itself, else unknown.

A TPU program does not say. Its counter is proven from three places: the loop's operands give its first value, the
root of the body its step, the root of the condition its bound. A value is followed only through copies, tuples, fusions
and additions of constants, so that a count is either right or None.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxscale.sharding.hlo import Computation, HloProgram, Instruction

_INDEX = r"\bindex=(\d+)"
_KNOWN = r'"known_trip_count":\{"n":"(\d+)"'
_UNCHANGED = frozenset({"bitcast", "convert", "copy", "copy-done", "copy-start", "reshape"})
_SIGNS = {"add": 1, "subtract": -1}
# How far behind the bound the counter's last value lies: `i <= n` runs once more than `i < n`.
_INCLUSIVE = {"LT": 0, "LE": 1}
_MIRRORED = {"GT": "LT", "GE": "LE"}


@dataclasses.dataclass(frozen=True)
class _Linear:
    """`state[element] + offset`: a value as the loop's state gives it; a plain number where `element` is None."""

    element: int | None
    offset: int


@dataclasses.dataclass(frozen=True)
class _State:
    """The whole state that the loop carries."""


@dataclasses.dataclass(frozen=True)
class _Tuple:
    """A tuple; its elements are looked at only when asked for."""

    elements: tuple[Callable[[], "_Value"], ...]


# None: not understood.
_Value: TypeAlias = _Linear | _State | _Tuple | None


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A computation, and what its parameters are, where that is known."""

    computation: Computation
    arguments: Mapping[str, Callable[[], _Value]]


@dataclasses.dataclass(frozen=True)
class _Condition:
    """The loop goes on while `counter < bound`."""

    counter: _Value
    bound: _Value


def trip_count(program: HloProgram, loop: Instruction, computation: str) -> int | None:
    """How often the body of a `while` runs, or None where that can't be proven.

    Args:
      program: the program.
      loop: the `while`.
      computation: the name of the computation that it stands in.
    """
    known = loop.attribute(_KNOWN)
    if known is not None:
        return int(known)
    condition_frame, body_frame = (_with_state(program, loop.called[part]) for part in ("condition", "body"))
    condition = _condition(program, condition_frame, condition_frame.computation.root)
    if condition is None or not isinstance(condition.counter, _Linear) or condition.counter.element is None:
        return None
    body = _value(program, body_frame, body_frame.computation.root.name)
    start = _value(program, _Frame(program.computations[computation], {}), loop.operands[0])
    first, bound = _number(start, condition.counter.element), _constant(condition.bound, body, start)
    after = _element(body, condition.counter.element)
    if first is None or bound is None or not isinstance(after, _Linear):
        return None
    if after.element != condition.counter.element or after.offset <= 0:
        return None
    return max(0, -(-(bound - first - condition.counter.offset) // after.offset))


def _condition(program: HloProgram, frame: _Frame, root: Instruction) -> _Condition | None:
    """The comparison that a condition's root makes; a fusion may hold it."""
    if root.opcode in _UNCHANGED:
        return _condition(program, frame, frame.computation.instructions[root.operands[0]])
    if root.opcode == "fusion":
        inner = _enter(program, frame, root)
        return _condition(program, inner, inner.computation.root)
    if root.opcode != "compare":
        return None
    left, right = (_value(program, frame, operand) for operand in root.operands)
    direction = root.attribute(r"\bdirection=(\w+)") or ""
    if direction in _MIRRORED:
        direction, left, right = _MIRRORED[direction], right, left
    return _Condition(left, _sum(right, _Linear(None, _INCLUSIVE[direction]), 1)) if direction in _INCLUSIVE else None


def _with_state(program: HloProgram, name: str) -> _Frame:
    computation = program.computations[name]
    parameters = [i.name for i in computation.instructions.values() if i.opcode == "parameter"]
    return _Frame(computation, dict.fromkeys(parameters, _State))


def _value(program: HloProgram, frame: _Frame, name: str) -> _Value:
    if name in frame.arguments:
        return frame.arguments[name]()
    instruction = frame.computation.instructions.get(name)
    if instruction is None:
        return None
    if instruction.opcode == "tuple":
        return _Tuple(tuple(functools.partial(_value, program, frame, operand) for operand in instruction.operands))
    if instruction.opcode == "get-tuple-element":
        return _element(_value(program, frame, instruction.operands[0]), int(instruction.attribute(_INDEX) or 0))
    if instruction.opcode in ("fusion", "call"):
        inner = _enter(program, frame, instruction)
        return _value(program, inner, inner.computation.root.name)
    if instruction.opcode in _UNCHANGED:
        return _value(program, frame, instruction.operands[0])
    if len(instruction.arrays) != 1 or math.prod(instruction.arrays[0].shape) != 1:
        return None
    return _scalar(program, frame, instruction)


def _scalar(program: HloProgram, frame: _Frame, instruction: Instruction) -> _Value:
    if instruction.opcode == "constant":
        digits = instruction.argument.strip("{}")
        return _Linear(None, int(digits)) if digits.lstrip("-").isdigit() else None
    if instruction.opcode in _SIGNS:
        left, right = (_value(program, frame, operand) for operand in instruction.operands)
        return _sum(left, right, _SIGNS[instruction.opcode])
    return None


def _enter(program: HloProgram, frame: _Frame, call: Instruction) -> _Frame:
    """The computation that is called, its parameters being the call's operands."""
    called = call.called
    computation = program.computations[called.get("calls") or called["to_apply"]]
    operands = [functools.partial(_value, program, frame, operand) for operand in call.operands]
    parameters = [i for i in computation.instructions.values() if i.opcode == "parameter"]
    return _Frame(computation, {parameter.name: operands[int(parameter.argument)] for parameter in parameters})


def _element(value: _Value, index: int) -> _Value:
    if isinstance(value, _State):
        return _Linear(index, 0)
    return value.elements[index]() if isinstance(value, _Tuple) else None


def _sum(left: _Value, right: _Value, sign: int) -> _Value:
    if not isinstance(left, _Linear) or not isinstance(right, _Linear):
        return None
    if right.element is None:
        return _Linear(left.element, left.offset + sign * right.offset)
    return _Linear(right.element, left.offset + right.offset) if left.element is None and sign == 1 else None


def _number(state: _Value, index: int) -> int | None:
    value = _element(state, index)
    return value.offset if isinstance(value, _Linear) and value.element is None else None


def _constant(value: _Value, body: _Value, start: _Value) -> int | None:
    """A bound: a number, or an element of the state that the body leaves as it is and that starts as a number."""
    if not isinstance(value, _Linear):
        return None
    if value.element is None:
        return value.offset
    if _element(body, value.element) != _Linear(value.element, 0):
        return None
    first = _number(start, value.element)
    return None if first is None else first + value.offset
