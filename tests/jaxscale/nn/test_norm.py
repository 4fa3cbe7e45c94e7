"""The norms, and the backward pass that LayerNorm has of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.nn.norm import make_norm

RNG = np.random.default_rng(0)
X = jnp.asarray(3 * RNG.normal(size=(2, 5, 16)) + 1, jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
EPSILON = 1e-5


def written_out(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)


@pytest.mark.parametrize("use_bias", [False, True])
def test_layer_norm_and_its_gradient_are_those_of_the_formula(use_bias):
    norm = make_norm("layernorm", X.shape[-1], epsilon=EPSILON, use_bias=use_bias)
    for x in (X, X[0, 0], 1e-4 * X):
        np.testing.assert_allclose(norm(x), written_out(x), rtol=1e-5, atol=1e-5)
        weights = WEIGHTS[: x.shape[0]] if x.ndim == X.ndim else WEIGHTS[0, 0]
        got, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x) for f in (norm, written_out))  # noqa: B023
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def test_layer_norm_keeps_one_array_of_its_input_s_size():
    norm = make_norm("layernorm", X.shape[-1], epsilon=EPSILON, use_bias=True)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(norm, x)[1], X))
    assert [leaf.shape for leaf in kept if leaf.size == X.size] == [X.shape]


def test_rms_norm_is_that_of_the_formula():
    norm = make_norm("rmsnorm", X.shape[-1], epsilon=EPSILON, use_bias=True)
    expected = X / jnp.sqrt(jnp.square(X).mean(axis=-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(norm(X), expected, rtol=1e-5)
