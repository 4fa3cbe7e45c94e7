"""What programs do first with their inputs, against programs written here."""

import jax
import jax.numpy as jnp

from jaxscale.sharding import jaxprs
from jaxscale.sharding.first_reads import first_casts, only_looked_up

X = jnp.ones((4, 4), jnp.float32)
ROWS = jnp.zeros(2, jnp.int32)


def found(function, *arguments):
    """For every input the dtype it is only cast to, and whether it is only looked up."""
    program = jaxprs.trace(function, *arguments)
    casts, looked_up = first_casts(program), only_looked_up(program)
    return [casts.get(variable) for variable in program.inputs], [v in looked_up for v in program.inputs]


def cast(x):
    return x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)


def test_only_casts():
    assert found(cast, X)[0] == [jnp.bfloat16]
    assert found(lambda x: cast(x).astype(jnp.float32) + x, X)[0] == [None]
    assert found(lambda x: (cast(x), x.astype(jnp.float16)), X)[0] == [None]
    assert found(lambda x: (cast(x), x), X)[0] == [None]
    assert found(lambda x: ROWS, X) == ([None], [False])


def test_casts_inside_calls_and_scans():
    def layers(stacked, given):
        def body(carry, x):
            return jax.checkpoint(lambda w, g: carry + cast(w) + g.astype(jnp.bfloat16))(x, given), None

        return jax.lax.scan(body, jnp.zeros((4, 4), jnp.bfloat16), stacked)[0]

    assert found(layers, jnp.ones((3, 4, 4)), X)[0] == [jnp.bfloat16, jnp.bfloat16]


def test_what_is_carried_through_a_loop_and_returned_is_no_cast():
    def layers(carried):
        return jax.lax.scan(lambda c, _: (c, cast(c)), carried, None, length=2)

    assert found(layers, X)[0] == [None]


def test_only_looked_up():
    assert found(lambda x, rows: jnp.take(x, rows, axis=0), X, ROWS)[1][0]
    assert not found(lambda x, rows: jnp.take(x, rows, axis=0) @ x, X, ROWS)[1][0]
