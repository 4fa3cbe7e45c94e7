"""Copies a program with changes at given equations: some replaced, some of their outputs passed on changed.

Equations are copied and nothing is interpreted, so what a transformation has to know of them (remat, custom
derivatives, donation, effects, names) is as it was. Programs that hold no change stay the same objects, and jax's
caches know them.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import DropVar, JaxprEqn, Literal, Var, jaxpr_as_fun

from jaxscale.errors import UsageError
from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Address

_MAX_SHOWN = 5


# A traceable function from arrays to an array or several. Equal ones do the same, so that each is traced once.
Operation = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """What becomes of one equation.

    Attributes:
      replacement: computes its outputs from its operands in its place; None to keep it. It has no effects and closes
        over no arrays.
      passed_on: for positions of outputs, what is made of that output before anything reads it.
    """

    replacement: Operation | None = None
    passed_on: tuple[tuple[int, Operation], ...] = ()


Edits = Mapping[Address, Edit]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """A function as a program, with the trees of its arguments and of its result."""

    function: Callable[..., Any]
    # A closed jaxpr.
    jaxpr: Any
    in_tree: Any
    out_tree: Any

    def as_function(self) -> Callable[..., Any]:
        """The program as a function of the same name and trees, for arguments of the shapes it was traced with.

        It is an ordinary traceable function: to be jitted, differentiated, vectorised.
        """
        run, inputs = jaxpr_as_fun(self.jaxpr), self.jaxpr.in_avals

        @functools.wraps(self.function)
        def rewritten(*arguments: Any) -> Any:
            leaves, tree = jax.tree.flatten(arguments)
            if tree != self.in_tree:
                raise UsageError(f"arguments: got {tree}, expected {self.in_tree}, which the function was traced for")
            for i, (leaf, aval) in enumerate(zip(leaves, inputs, strict=True)):
                got, expected = _described(jax.typeof(leaf)), _described(aval)
                if got != expected:
                    raise UsageError(
                        f"argument leaf {i}: got {got}, expected {expected}, which the function was traced for; "
                        "rewrite it anew for other shapes"
                    )
            return jax.tree.unflatten(self.out_tree, run(*leaves))

        return rewritten


def trace(function: Callable[..., Any], *arguments: Any) -> Traced:
    """The program of a function; nothing is computed.

    Args:
      function: traceable.
      arguments: trees of arrays, or of `jax.ShapeDtypeStruct`.
    """
    jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return Traced(
        function=function, jaxpr=jaxpr, in_tree=jax.tree.structure(arguments), out_tree=jax.tree.structure(result)
    )


def rewrite(jaxpr: Any, edits: Edits) -> Any:
    """The jaxpr with every edit done, recursing into scan, while, cond, remat and jit where an address says so.

    Args:
      jaxpr: closed or open.
      edits: by the address of the equation in `jaxpr` as it is.

    Raises:
      UsageError: an address leads to no equation, or into a custom derivative, a kernel or an equation that is
        replaced, or names an output that nothing reads.
    """
    problems = [problem for address in edits if (problem := _problem(jaxpr, address, edits))]
    if problems:
        raise UsageError(refusal("the program can't be rewritten", problems))
    return _Rewriter().rewrite(jaxpr, {address: edit for address, edit in edits.items() if edit != Edit()})


def refusal(what: str, problems: Sequence[str]) -> str:
    """One message of several problems, the first few in full."""
    more = [f"and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
    return f"{what}:\n  " + "\n  ".join([*problems[:_MAX_SHOWN], *more])


def equations(jaxpr: Any, outer: Address = ()) -> Iterator[tuple[Address, JaxprEqn]]:
    """Every equation that may be edited, with its address; those that hold others come before them."""
    for i, equation in enumerate(jaxpr.eqns):
        address = (*outer, i)
        yield address, equation
        held = jaxprs.changeable(equation)
        for branch, inner in enumerate(held):
            yield from equations(inner, (*address, branch) if _has_branches(equation) else address)


def find(jaxpr: Any, address: Address) -> JaxprEqn | None:
    """The equation at an address, or None where there is none that may be edited."""
    head, *rest = address
    if not 0 <= head < len(jaxpr.eqns):
        return None
    equation = jaxpr.eqns[head]
    if not rest:
        return equation
    held = jaxprs.changeable(equation)
    branch = rest.pop(0) if _has_branches(equation) else 0
    return find(held[branch], tuple(rest)) if rest and 0 <= branch < len(held) else None


def source_of(equation: JaxprEqn) -> str:
    """`file.py:line` of the user's code that made an equation; the primitive's name where jax kept none."""
    return jaxprs.Equation(equation.primitive.name, (), (), {}, equation.source_info).source or equation.primitive.name


def place_of(address: Address, equation: JaxprEqn) -> str:
    """An equation for people: its primitive, its line, its address."""
    return f"{equation.primitive.name} at {source_of(equation)} (address {address})"


def _has_branches(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "cond"


def _described(aval: Any) -> str:
    return f"{aval.dtype}{list(aval.shape)}"


def _problem(jaxpr: Any, address: Address, edits: Edits) -> str | None:
    equation = find(jaxpr, address) if address else None
    replaced = [address[:n] for n in range(1, len(address)) if edits.get(address[:n], Edit()).replacement]
    if replaced:
        return f"address {address} is inside the equation at {replaced[0]}, which is replaced"
    if equation is None:
        around = next((found for n in range(len(address) - 1, 0, -1) if (found := find(jaxpr, address[:n]))), None)
        if around is None:
            return f"address {address}: there is no such equation; the program has {len(jaxpr.eqns)}"
        inside = "is not entered (only its results may be changed)" if not jaxprs.changeable(around) else "has no such"
        return f"address {address}: {around.primitive.name} at {source_of(around)} {inside}"
    for output, _ in edits[address].passed_on:
        where = place_of(address, equation)
        if not 0 <= output < len(equation.outvars):
            return f"{where} has {len(equation.outvars)} outputs, got output {output}"
        if isinstance(equation.outvars[output], DropVar):
            return f"{where}: nothing reads output {output}"
    return None


class _Rewriter:
    """One rewriting; equal changes of one program make one program, as they were one before."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Any] = {}
        self._templates: dict[Hashable, Any] = {}

    def rewrite(self, jaxpr: Any, edits: Edits) -> Any:
        if not edits:
            return jaxpr
        key = (id(jaxpr), frozenset(edits.items()))
        if key not in self._programs:
            self._programs[key] = self._rewritten(jaxpr, edits)
        return self._programs[key]

    def _rewritten(self, jaxpr: Any, edits: Edits) -> Any:
        by_position: dict[int, dict[Address, Edit]] = {}
        for address, edit in edits.items():
            by_position.setdefault(address[0], {})[address[1:]] = edit
        made: list[JaxprEqn] = []
        # What stands for a variable whose equation was changed.
        stand_ins: dict[Var, Any] = {}
        for i, old in enumerate(jaxpr.eqns):
            equation = _reading(old, stand_ins) if stand_ins else old
            here = by_position.get(i, {})
            inside = {address: edit for address, edit in here.items() if address}
            if inside:
                equation = self._changed_inside(equation, inside)
            edit = here.get((), Edit())
            if edit.replacement is None:
                made.append(equation)
            else:
                results = self._splice(edit.replacement, equation.invars, equation, made)
                _check_alike(edit.replacement, old.outvars, results)
                stand_ins.update(zip(old.outvars, results, strict=True))
            for output, operation in edit.passed_on:
                variable = old.outvars[output]
                results = self._splice(operation, [_stand_in(variable, stand_ins)], equation, made)
                _check_alike(operation, [variable], results)
                stand_ins[variable] = results[0]
        outputs = [_stand_in(atom, stand_ins) for atom in jaxpr.outvars]
        return jaxprs.with_equations(jaxpr, made, outputs)

    def _changed_inside(self, equation: JaxprEqn, edits: Edits) -> JaxprEqn:
        held = jaxprs.changeable(equation)
        if not _has_branches(equation):
            return jaxprs.with_changed(equation, [self.rewrite(held[0], edits)])
        by_branch: dict[int, dict[Address, Edit]] = {}
        for (branch, *rest), edit in edits.items():
            by_branch.setdefault(branch, {})[tuple(rest)] = edit
        return jaxprs.with_changed(
            equation, [self.rewrite(inner, by_branch.get(i, {})) for i, inner in enumerate(held)]
        )

    def _splice(self, operation: Operation, inputs: Sequence[Any], near: JaxprEqn, made: list[JaxprEqn]) -> list[Any]:
        """Appends the equations of an operation on `inputs` to `made`, as if written on the line of `near`."""
        avals = tuple(atom.aval for atom in inputs)
        key = (operation, avals)
        if key not in self._templates:
            self._templates[key] = _template(operation, avals)
        template = self._templates[key]
        known: dict[Var, Any] = dict(zip(template.invars, inputs, strict=True))
        for equation in template.eqns:
            outputs = [Var(variable.aval) for variable in equation.outvars]
            known.update(zip(equation.outvars, outputs, strict=True))
            read = [_stand_in(atom, known) for atom in equation.invars]
            made.append(equation.replace(invars=read, outvars=outputs, source_info=near.source_info, ctx=near.ctx))
        return [_stand_in(atom, known) for atom in template.outvars]


def _template(operation: Operation, avals: Iterable[Any]) -> Any:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
    template = jax.make_jaxpr(operation)(*shapes)
    if template.consts or template.effects:
        raise ValueError(f"{operation} closes over arrays or has effects; an edit may have neither")
    return template


def _check_alike(operation: Operation, old: Sequence[Any], new: Sequence[Any]) -> None:
    was, made = ([_described(atom.aval) for atom in atoms] for atoms in (old, new))
    if was != made:
        raise ValueError(f"{operation} makes {made} where the program had {was}")


def _reading(equation: JaxprEqn, stand_ins: Mapping[Var, Any]) -> JaxprEqn:
    if not any(not isinstance(atom, Literal) and atom in stand_ins for atom in equation.invars):
        return equation
    return equation.replace(invars=[_stand_in(atom, stand_ins) for atom in equation.invars])


def _stand_in(atom: Any, stand_ins: Mapping[Var, Any]) -> Any:
    return atom if isinstance(atom, Literal) else stand_ins.get(atom, atom)
