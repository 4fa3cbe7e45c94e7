"""The exact GELU's written-out derivative equals the one that jax derives."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.nn.mlp import exact_gelu


def test_the_slope_of_the_exact_gelu_is_that_of_jaxs():
    x = jnp.linspace(-12.0, 12.0, 2001)
    got = jax.vmap(jax.grad(exact_gelu))(x)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(exact_gelu(x), jax.nn.gelu(x, approximate=False))
