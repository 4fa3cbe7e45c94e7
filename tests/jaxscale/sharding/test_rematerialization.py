"""Involuntary full rematerialization: provoked on 8 devices, heard on standard error, named with its line."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.errors import UsageError
from jaxscale.sharding import rematerialization
from jaxscale.sharding.hlo import parse_instruction
from jaxscale.sharding.rematerialization import compile_watched, refuse, rematerializations, watching

NO_WAY_LINE = 25


def lowered(after):
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)

    def changes_sharding(x):
        first = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, P("a", "c")))
        # The compiler's warning is about the value it starts from.
        return jax.lax.with_sharding_constraint(jnp.cos(first), NamedSharding(mesh, after))

    return jax.jit(changes_sharding).lower(jax.ShapeDtypeStruct((16, 24), jnp.float32))


@pytest.fixture(scope="module")
def found():
    return compile_watched(lowered(P(None, ("a", "c", "b"))))[1]


def test_an_array_copied_whole_is_named_with_its_line_shape_and_bytes(found):
    (one,) = found
    assert one.source == f"test_rematerialization.py:{NO_WAY_LINE}"
    assert one.op_name == "jit(changes_sharding)/sharding_constraint"
    assert (one.dtype, one.shape, one.num_bytes) == ("f32", (16, 24), 16 * 24 * 4)
    assert one.before != one.after
    assert f"at test_rematerialization.py:{NO_WAY_LINE}: f32 (16, 24), 1536 bytes, is copied whole" in str(one)


def test_it_is_refused_above_a_budget(found):
    refuse(found, 1536)
    with pytest.raises(
        UsageError, match=r"above 1535 bytes; take the constraint .*\n.*:25: f32 \(16, 24\), 1536 bytes"
    ):
        refuse(found, 1535)


def test_a_change_that_the_compiler_knows_a_way_for_is_not_reported():
    compiled, found = compile_watched(lowered(P("c", "a")))
    assert found == ()
    x = jnp.arange(16 * 24, dtype=jnp.float32).reshape(16, 24)
    assert compiled(x).sharding.spec == P("c", "a")


@pytest.mark.parametrize(
    ("ids", "after", "names_a_stand_in"),
    [(P("a", "b"), P(("a", "b", "c")), True), (P("a"), P(("a", "b")), False)],
)
def test_ways_that_the_compiler_only_weighed_are_left_out(ids, after, names_a_stand_in):
    """To look rows up, XLA partitions several ways on trial; it warns of those as of the one that it takes."""
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)

    def looks_up(table, rows):
        found = jnp.take(table, rows, axis=0, mode="clip")
        return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, after))

    places = (NamedSharding(mesh, P("a", "b")), NamedSharding(mesh, ids))
    table, rows = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((16, 8), jnp.int32)
    lowered = jax.jit(looks_up, in_shardings=places).lower(table, rows)
    with watching() as heard:
        compiled = lowered.compile()
    if not names_a_stand_in and not heard:
        pytest.skip("this compiler weighs no way that it warns of without naming a stand-in")
    assert heard
    assert all("Involuntary full rematerialization" in line for line in heard)
    assert any("%fake_parameter" in line for line in heard) is names_a_stand_in
    assert rematerializations(heard, lowered) == ()
    made = [parse_instruction(line) for line in compiled.as_text().splitlines() if "all-gather(" in line]
    assert all(array.shape != (16, 8, 32) for instruction in made for array in instruction.arrays)


def test_one_in_the_body_of_a_loop_is_reported():
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)
    before, after = (NamedSharding(mesh, spec) for spec in (P("a", "c"), P(None, ("a", "c", "b"))))

    def body(x, _):
        made = jnp.cos(jax.lax.with_sharding_constraint(x, before))
        return jax.lax.with_sharding_constraint(made, after), None

    shape = jax.ShapeDtypeStruct((16, 24), jnp.float32)
    _, found = compile_watched(jax.jit(lambda x: jax.lax.scan(body, x, None, length=3)[0]).lower(shape))
    assert found
    assert all("while/body" in one.op_name and one.shape == (16, 24) for one in found)


def test_shardings_in_the_words_of_both_compilers():
    heard = [
        "W1 [SPMD] Involuntary full rematerialization. The compiler cannot go from sharding "
        f"{before} to {{replicated}} efficiently for HLO operation %copy.1 = bf16[8,1,6]{{2,1,0}} copy(%x), "
        'metadata={op_name="jit(f)/mul" stack_frame_id=99}. As the last resort, SPMD will replicate the tensor.'
        for before in (
            "{devices=[2,4,1]<=[8]}",
            "{devices=[2,4,1,2]<=[2,8]T(1,0) last_tile_dim_replicate}",
            "{mesh['a'=2,'b'=8], [{'a'}, {'b':(2)4}, {}]}",
        )
    ]
    found = rematerializations(["something else", *heard], lowered(P()))
    assert [(one.dtype, one.shape, one.num_bytes, one.source) for one in found] == [("bf16", (16, 4, 6), 768, "")] * 3


def test_all_else_that_is_written_goes_on_to_standard_error(capfd):
    with watching() as heard:
        os.write(2, b"before\n[SPMD] Involuntary full rematerialization. The")
        os.write(2, b" compiler\nafter, without an end of line")
    assert heard == ["[SPMD] Involuntary full rematerialization. The compiler"]
    os.write(2, b", and later\n")
    assert capfd.readouterr().err == "before\nafter, without an end of line, and later\n"


def test_standard_error_is_there_again_after_an_error(capfd):
    def fails():
        with watching():
            os.write(2, b"one\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    os.write(2, b"two\n")
    assert capfd.readouterr().err == "one\ntwo\n"


def test_the_last_words_of_a_process_that_ends_inside_are_not_lost():
    program = (
        "import os, time\n"
        "from jaxscale.sharding.rematerialization import watching\n"
        "with watching():\n"
        "    os.write(2, b'check failed\\n'); time.sleep(0.2); os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode < 0
    assert b"check failed" in done.stderr


def test_a_process_without_standard_error_compiles_all_the_same():
    program = (
        "import os\n"
        "from jaxscale.sharding.rematerialization import watching\n"
        "os.close(2)\n"
        "with watching() as heard: pass\n"
        "print(heard)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.stdout == b"[]\n"


def test_the_module_says_what_the_compiler_says():
    """The mark that lines are told by is the beginning of what they are read by."""
    assert rematerialization._WARNING.pattern.startswith(rematerialization._MARK.decode())
