"""The exact GELU against the paper's in float64, and its written-out slope against the one that jax derives."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.nn.mlp import exact_gelu

X = np.linspace(-12.0, 12.0, 2001, dtype=np.float32)


def test_the_exact_gelu_is_that_of_the_paper():
    expected = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X.astype(np.float64)]
    np.testing.assert_allclose(exact_gelu(jnp.asarray(X)), expected, rtol=1e-6, atol=1e-6)


def test_the_slope_of_the_exact_gelu_is_that_of_jaxs():
    got = jax.vmap(jax.grad(exact_gelu))(X)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(X)
    np.testing.assert_allclose(got, expected, atol=1e-6)
