"""Some layers of a model: what they compute is what the whole model would compute without the others."""

import jax
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config
from jaxscale.nn.layer_choice import with_layers
from tests.jaxscale.random_params import random_params

CONFIG = bert_config(num_layers=4, d_model=8, num_heads=2, d_ff=16, vocab_size=20, max_positions=8, dropout_rate=0.0)


def test_the_shallow_model_is_the_deep_one_without_the_other_layers():
    params = random_params(CONFIG)
    shallow, chosen = with_layers(CONFIG, params, (0, 2))
    unstacked = functional.unstack_layers(params)
    by_hand = unstacked | {"layers": {0: unstacked["layers"][0], 1: unstacked["layers"][2]}}
    tokens = np.array([[3, 4, 5]], np.int32)
    mask = np.ones((1, 3), bool)
    ours, theirs = (jax.jit(lambda p: functional.apply(shallow, p, tokens, mask))(p) for p in (chosen, by_hand))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert jax.tree.leaves(chosen["layers"])[0].shape[0] == shallow.num_layers == 2


@pytest.mark.parametrize("layers", [(), (4,), (0, -1)])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UsageError, match="of a model of 4; name some of 0 to 3"):
        with_layers(CONFIG, random_params(CONFIG), layers)
