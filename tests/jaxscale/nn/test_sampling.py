"""Tokens are drawn with the probabilities that temperature, top-k and top-p leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn.sampling import Sampling, choose_tokens

PROBABILITIES = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
NUM_DRAWS = 20_000


def frequencies(sampling):
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (NUM_DRAWS, 5))
    drawn = choose_tokens(logits, jax.random.split(jax.random.key(1), NUM_DRAWS), sampling)
    return np.bincount(np.asarray(drawn), minlength=5) / NUM_DRAWS


@pytest.mark.parametrize(
    ("sampling", "kept", "power"),
    [
        (Sampling(temperature=1.0), [0, 1, 2, 3, 4], 1.0),
        (Sampling(temperature=0.5), [0, 1, 2, 3, 4], 2.0),
        (Sampling(temperature=1.0, top_k=2), [1, 2], 1.0),
        (Sampling(temperature=1.0, top_p=0.8), [1, 2, 3], 1.0),
        # Of the three that are left, .47 and .29 come to .75.
        (Sampling(temperature=1.0, top_k=3, top_p=0.75), [1, 2], 1.0),
        (Sampling(temperature=0.0), [1], 1.0),
    ],
)
def test_frequencies_are_the_probabilities_that_are_left(sampling, kept, power):
    expected = np.zeros(5)
    expected[kept] = PROBABILITIES[kept] ** power
    np.testing.assert_allclose(frequencies(sampling), expected / expected.sum(), atol=0.015)


def test_refuses_options_that_mean_nothing():
    for options, message in (
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"seed": 2**32}, "seed=4294967296"),
    ):
        with pytest.raises(UsageError, match=message):
            Sampling(**options)
