"""How often loops run: proven from the loop where the compiler does not say, and None rather than wrong."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.sharding.hlo import parse_program
from jaxscale.sharding.trip_counts import trip_count
from tests.jaxscale.sharding.hlo_texts import TPU_LOOP


def count(text):
    program = parse_program(text)
    return trip_count(program, program.computations["main"].instructions["while.1"], "main")


def test_a_count_proven_from_the_loop():
    # 1, 3, 5, 7, 9 are below 10.
    assert count(TPU_LOOP) == 5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("constant(10)", "constant(9)", 4),
        ("compare(%at, %end), direction=LT", "compare(%at, %end), direction=LE", 5),
        ("constant(10)\n  %coll", "constant(9)\n  %coll", 4),
        ("compare(%at, %end), direction=LT", "compare(%end, %at), direction=GT", 5),
        ("compare(%at, %end), direction=LT", "compare(%at, %end), direction=NE", None),
        ("add(%two, %counter)", "multiply(%two, %counter)", None),
        ("add(%two, %counter)", "subtract(%counter, %two)", None),
        # The bound changes on the way.
        ("tuple(%i.copy, %summed, %w, %bound)", "tuple(%i.copy, %summed, %w, %i.copy)", None),
        # The first value is not known.
        ("%first = s32[]{:T(128)} constant(1)", "%first = s32[]{:T(128)} parameter(1)", None),
        ("constant(10)", "constant(1)", 0),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"77"}}', 77),
    ],
)
def test_what_changes_it(old, new, expected):
    assert old in TPU_LOOP
    assert count(TPU_LOOP.replace(old, new)) == expected


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_it_agrees_with_what_the_cpu_compiler_says():
    def body(x, _):
        return jnp.sin(x @ x), None

    text = compiled_text(lambda x: jax.lax.scan(body, x, None, length=13)[0], jnp.ones((8, 8)))
    without = text.replace('"known_trip_count":{"n":"13"}', '"nothing":{}')
    assert without != text
    for version in (text, without):
        program = parse_program(version)
        found = [
            trip_count(program, instruction, computation.name)
            for computation in program.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "while"
        ]
        assert found == [13]


def test_a_loop_that_ends_when_its_values_say_is_not_known():
    text = compiled_text(lambda x: jax.lax.while_loop(lambda y: jnp.sum(y) < 100.0, lambda y: y * 2.0, x), jnp.ones(4))
    program = parse_program(text)
    loops = [
        (computation.name, instruction)
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    ]
    assert [trip_count(program, loop, name) for name, loop in loops] == [None]
