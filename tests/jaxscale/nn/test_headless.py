"""Headless models: the hidden states of the whole one, no scores of tokens, and both ways where asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.nn.headless import headless, headless_params
from tests.configs.on_meshes import COMPILED_FAST
from tests.jaxscale.random_params import random_like

WHOLE = decoder_config(
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    d_ff=24,
    vocab_size=30,
    max_positions=8,
    tied_output=False,
)
TOKENS = np.random.default_rng(0).integers(0, 30, (2, 8)).astype(np.int32)


def hidden(config, params, tokens):
    apply = jax.jit(lambda p, t: functional.apply(config, p, t, None), compiler_options=COMPILED_FAST)
    return np.asarray(apply(params, tokens))


def whole_params():
    return random_like(jax.eval_shape(lambda: functional.init_params(WHOLE, jax.random.key(0))))


def test_hidden_states_are_those_of_the_whole_model():
    whole = whole_params()
    params, config = headless_params(whole), headless(WHOLE)
    shapes = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    assert config.num_params == sum(leaf.size for leaf in jax.tree.leaves(params)) == WHOLE.num_params - 30 * 16
    np.testing.assert_array_equal(hidden(config, params, TOKENS), hidden(WHOLE, whole, TOKENS))


def test_both_ways_a_token_reads_those_to_its_right():
    params = headless_params(whole_params())
    other = TOKENS.copy()
    other[:, -1] = (other[:, -1] + 1) % 30
    for both_ways in (False, True):
        config = headless(WHOLE, both_ways=both_ways)
        first, changed = (hidden(config, params, tokens)[:, 0] for tokens in (TOKENS, other))
        assert np.allclose(first, changed, atol=1e-6) is not both_ways


def test_it_has_no_scores_of_tokens():
    config = headless(WHOLE)
    params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    with pytest.raises(UsageError, match="headless=True: this decoder was made to embed texts"):
        functional.logits(config, params, jnp.zeros((1, 1, 16)))
    with pytest.raises(UsageError, match="headless=True"):
        functional.output_weights(config, params)


def test_an_encoder_is_headless_as_it_is():
    bert = bert_config(num_layers=1, d_model=8, num_heads=2, d_ff=8, vocab_size=9, max_positions=4)
    assert headless(bert) == headless(bert, both_ways=True) == bert


@pytest.mark.parametrize("kind", [{"kind": "encoder"}, {"tied_output": True}])
def test_what_has_no_output_to_leave_out_is_refused(kind):
    fields = {**vars(WHOLE), "headless": True, **kind}
    with pytest.raises(UsageError, match="headless=True is of a decoder without an output"):
        type(WHOLE)(**fields)
