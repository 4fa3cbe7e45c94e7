"""Follows marks on the axes of arrays through a program and the programs it holds."""

from collections.abc import Sequence
from typing import Any

from jaxscale.sharding import jaxprs, on_parts
from jaxscale.sharding.follow_rules import RULES, lost
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan
from jaxscale.sharding.marks import Axes, Diary, Event, unmarked

# Their bodies are not changed: of a custom derivative a changed one would disagree with the derivative, and a function
# on parts is replaced as one.
_NOT_CHANGED = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", on_parts.NAME})


def follow(program: Program, axes: Sequence[Axes]) -> tuple[list[Axes], list[Event]]:
    """The marks of a program's results, and all that happens to marks on the way.

    Args:
      program: the program.
      axes: for every input the marks of its axes.
    """
    walk = _Walk()
    return walk.run(program, axes, ()), walk.diary.events


class _Walk:
    def __init__(self) -> None:
        self.diary = Diary()

    def run(self, program: Program, axes: Sequence[Axes], address: Address | None) -> list[Axes]:
        """The marks of the results; `address` leads to the program, and is None where it may not be changed."""
        known: dict[Any, Axes] = dict(zip(program.inputs, axes, strict=True))

        def read(atom: Any) -> Axes:
            return unmarked(atom) if jaxprs.is_literal(atom) else known.get(atom, unmarked(atom))

        for i, equation in enumerate(program.equations):
            at = None if address is None else (*address, i)
            made = self._apply(equation, [read(atom) for atom in equation.inputs], at)
            known.update(zip(equation.outputs, made, strict=True))
        return [read(atom) for atom in program.outputs]

    def _apply(self, equation: Equation, inputs: list[Axes], at: Address | None) -> list[Axes]:
        match jaxprs.inner(equation):
            case Scan() as scan:
                return self._scan(equation, scan, inputs, at)
            case Branches(branches):
                return self._branches(equation, branches, inputs[1:], at)
            case Call(program):
                return self.run(program, inputs, None if equation.name in _NOT_CHANGED else at)
            case _:
                # Of a `while` the condition is not walked, so that nothing can be said of what it reads.
                self._stand_at(equation, at)
                return RULES.get(equation.name, lost)(self.diary, equation, inputs)

    def _stand_at(self, equation: Equation, at: Address | None) -> None:
        self.diary.equation, self.diary.address = equation, at

    def _scan(self, equation: Equation, scan: Scan, inputs: list[Axes], at: Address | None) -> list[Axes]:
        num_given = scan.num_consts + scan.num_carry
        consts, carry, stacked = inputs[: scan.num_consts], inputs[scan.num_consts : num_given], inputs[num_given:]
        self._stand_at(equation, at)
        for axes in stacked:
            self.diary.lose(axes, among=[0])
        start = len(self.diary.events)
        while True:
            made = self.run(scan.body, [*consts, *carry, *(axes[1:] for axes in stacked)], at)
            self._stand_at(equation, at)
            carried = [self.diary.meet_all(old, new) for old, new in zip(carry, made, strict=False)]
            if carried == carry:
                return [*carried, *((None, *axes) for axes in made[len(carry) :])]
            # A carry may begin with less known of it, or more: what happened before that was known did not.
            del self.diary.events[start:]
            carry = carried

    def _branches(
        self, equation: Equation, branches: Sequence[Program], inputs: list[Axes], at: Address | None
    ) -> list[Axes]:
        results = [self.run(branch, inputs, None if at is None else (*at, i)) for i, branch in enumerate(branches)]
        self._stand_at(equation, at)
        joined = results[0]
        for other in results[1:]:
            joined = [self.diary.meet_all(mine, theirs) for mine, theirs in zip(joined, other, strict=True)]
        return joined
