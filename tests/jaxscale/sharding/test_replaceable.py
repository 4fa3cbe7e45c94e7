"""What is marked is one equation until it is differentiated, and for the compiler not there at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from jaxscale.sharding import jaxprs, rewrite
from jaxscale.sharding.replaceable import replaceable
from jaxscale.sharding.rewrite import Edit

X, W = jnp.arange(12.0).reshape(4, 3) / 12, jnp.ones((3, 3)) / 3
CHOSEN = jnp.asarray([2, 0, 1], jnp.int32)


def inner(x, w, chosen):
    return jnp.tanh(x @ w)[:, chosen]


def written_out(x, w):
    return jnp.sum(jnp.square(inner(x, w, CHOSEN)))


def marked(x, w):
    return jnp.sum(jnp.square(replaceable(inner, "mine", x, w, CHOSEN)))


def scanned(function):
    def run(x, w):
        body = jax.checkpoint(lambda carry, _: (carry + function(x * carry, w), None))
        return jax.lax.scan(body, jnp.float32(1.0), None, length=3)[0]

    return run


def marks(function):
    return [mark for _, e in rewrite.equations(rewrite.trace(function, X, W).jaxpr) if (mark := jaxprs.mark_of(e))]


def test_it_is_found_by_its_mark_and_gone_from_the_gradient():
    assert marks(marked) == marks(scanned(marked)) == ["mine"]
    assert marks(jax.grad(marked)) == marks(jax.grad(scanned(marked))) == marks(written_out) == []


@pytest.mark.parametrize("wrap", [lambda f: f, jax.grad, scanned, lambda f: jax.grad(scanned(f), argnums=1)])
def test_what_is_compiled_is_what_would_be_without_it(wrap):
    def hlo(function):
        def step(x, w):
            return wrap(function)(x, w)

        return jax.jit(step).lower(X, W).as_text()

    assert hlo(marked) == hlo(written_out)


def test_it_can_be_run_without_jit_and_over_rows():
    np.testing.assert_array_equal(marked(X, W), written_out(X, W))
    over_rows = [jax.vmap(function, in_axes=(0, None)) for function in (marked, written_out)]
    rows = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(over_rows[0](rows, W), over_rows[1](rows, W), rtol=1e-6)


def test_it_is_replaced_as_a_whole():
    traced = rewrite.trace(marked, X, W)
    (address,) = [at for at, equation in rewrite.equations(traced.jaxpr) if jaxprs.mark_of(equation) == "mine"]
    changed = rewrite.rewrite(traced.jaxpr, {address: Edit(replacement=lambda x, w, chosen: x + 1)})
    assert jax.jit(lambda *leaves: jaxpr_as_fun(changed)(*leaves)[0])(X, W) == jnp.sum(jnp.square(X + 1))
