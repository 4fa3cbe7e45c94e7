"""Dropout keeps the mean, zeroes the right share, and does nothing without a key."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.nn.dropout import dropout


def test_zeroes_the_asked_share_and_scales_the_rest():
    x = jnp.ones((100, 100))
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert abs((y == 0).mean() - 0.3) < 0.02
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)


def test_keeps_the_dtype():
    assert dropout(jnp.ones(8, jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_rate_zero_or_no_key_is_the_identity():
    x = jnp.arange(5.0)
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x, 0.9, None) is x
