"""The encoder-decoder against a plain reference, and what its two halves may see of each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import EncoderDecoderConfig
from jaxscale.nn.families import bert_config, t5_config
from tests.jaxscale.nn.plain import plain_encoder_decoder
from tests.jaxscale.random_params import random_params

CONFIG = t5_config(num_layers=2, d_model=24, num_heads=4, head_dim=8, d_ff=40, vocab_size=50, max_positions=16)
TIED = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, tied_output=True, num_layers=1))


def texts(length, seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 50, (2, length)), jnp.int32)


def apply(config, params, source, tokens, **options):
    return jax.jit(lambda p: functional.apply_encoder_decoder(config, p, source, tokens, **options))(params)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["T5 1.1", "tied, of unequal depth"])
def test_equals_the_plain_reference_and_has_as_many_parameters(config):
    params = random_params(config, spread=0.2)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_params
    source, tokens = texts(9, 0), texts(6, 1)
    got = apply(config, params, source, tokens)
    assert got.dtype == jnp.float32
    for row in range(2):
        expected = plain_encoder_decoder(config, params, np.asarray(source[row]), np.asarray(tokens[row]))
        np.testing.assert_allclose(got[row], expected, rtol=2e-4, atol=1e-4)


def test_padding_of_the_source_and_the_future_of_the_target_change_nothing():
    params = random_params(CONFIG, spread=0.2)
    source, tokens = texts(9, 0), texts(6, 1)
    mask = jnp.arange(9)[None, :] < jnp.array([[9], [5]])
    before = apply(CONFIG, params, source, tokens, source_mask=mask)
    other = jnp.where(mask, source, (source + 7) % 50)
    after = apply(CONFIG, params, other, tokens.at[:, 4:].set(3), source_mask=mask)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert bool((before[:, 4:] != after[:, 4:]).any())


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("encoder", {"kind": "decoder"}, "encoder.kind='decoder' must be 'encoder'"),
        ("encoder", {"d_model": 32}, "encoder.d_model=32 must be decoder.d_model=24"),
        ("decoder", {"positions": "learned"}, "decoder: tables of positions"),
        ("decoder", {"parallel": True}, "decoder: layers must be norm_placement='pre'"),
    ],
)
def test_refuses_parts_that_do_not_fit(part, changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **changes)})


def test_refuses_an_encoder_with_a_table_of_positions():
    bert = bert_config(num_layers=1, d_model=24, num_heads=4, d_ff=40, vocab_size=50)
    with pytest.raises(UsageError, match="not shared"):
        EncoderDecoderConfig(encoder=bert, decoder=CONFIG.decoder)


def test_refuses_a_source_over_its_limit():
    with pytest.raises(UsageError, match="encoder sequence of 17 tokens"):
        jax.eval_shape(
            lambda p: functional.apply_encoder_decoder(CONFIG, p, texts(17, 0), texts(6, 1)), random_params(CONFIG)
        )
