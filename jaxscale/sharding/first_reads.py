"""What a program does first with each of its inputs, in the calls and the scans that it holds too."""

from typing import Any

from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Call, Equation, Program, Scan
from jaxscale.sharding.on_parts import NAME as ON_PARTS

# What gives a layer of a stack, or the same values in another form.
_CUTS = frozenset({"convert_element_type", "dynamic_slice", "reshape", "slice", "squeeze"})


def first_reads(program: Program) -> dict[Any, list[Equation | None]]:
    """The equations that read each input, whole or by a scan's slices; None where the program returns it as it is.

    Args:
      program: of any function.
    """
    found: dict[Any, list[Equation | None]] = {variable: [] for variable in program.inputs}
    for equation in program.equations:
        held = jaxprs.inner(equation)
        inside = held.program if isinstance(held, Call) else held.body if isinstance(held, Scan) else None
        reads = {} if inside is None else first_reads(inside)
        for position, variable in enumerate(equation.inputs):
            if not jaxprs.is_literal(variable) and variable in found:
                found[variable] += [equation] if inside is None else reads[inside.inputs[position]]
    for variable in program.outputs:
        if not jaxprs.is_literal(variable) and variable in found:
            found[variable].append(None)
    return found


def first_casts(program: Program) -> dict[Any, Any]:
    """The dtype that an input is cast to, of those inputs that the program only casts, and to one dtype."""
    casts = {}
    for variable, reads in first_reads(program).items():
        dtypes = {None if read is None else _cast_to(read) for read in reads}
        if len(dtypes) == 1 and None not in dtypes:
            casts[variable] = dtypes.pop()
    return casts


def only_looked_up(program: Program) -> frozenset[Any]:
    """The inputs of which the program only takes rows."""
    found = first_reads(program)
    return frozenset(
        variable
        for variable, reads in found.items()
        if reads and all(read is not None and read.name == "gather" for read in reads)
    )


def taken_in_parts(program: Program) -> frozenset[Any]:
    """The inputs that a function of `on_parts` takes, or a layer of them: it gathers what is stored in parts itself."""
    found: set[Any] = set()
    cut_from = {variable: variable for variable in program.inputs}
    for equation in program.equations:
        taken = [variable for variable in equation.inputs if not jaxprs.is_literal(variable)]
        if equation.name in _CUTS and taken[0] in cut_from:
            cut_from[equation.outputs[0]] = cut_from[taken[0]]
        if equation.name != ON_PARTS:
            held = jaxprs.inner(equation)
            inside = held.program if isinstance(held, Call) else held.body if isinstance(held, Scan) else None
            of_inside = frozenset() if inside is None else taken_in_parts(inside)
            inner = () if inside is None else inside.inputs
            outer = zip(equation.inputs, inner, strict=False)
            taken = [mine for mine, its in outer if its in of_inside and not jaxprs.is_literal(mine)]
        found.update(cut_from[variable] for variable in taken if variable in cut_from)
    return frozenset(found)


def _cast_to(equation: Equation) -> Any:
    return equation.params["new_dtype"] if equation.name == "convert_element_type" else None
