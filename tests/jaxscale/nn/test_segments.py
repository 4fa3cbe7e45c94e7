"""Several documents in one row: each is computed as if it stood alone, and none reads another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.nn import functional
from jaxscale.nn.families import bert_config, decoder_config, gpt_config, palm_config
from tests.jaxscale.random_params import random_params

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 4, "vocab_size": 50, "max_positions": 16}
LLAMA = decoder_config(num_kv_heads=2, d_ff=24, **SIZES)
CONFIGS = {
    "llama": LLAMA,
    "gpt": gpt_config(**SIZES),
    "palm": palm_config(head_dim=4, **SIZES),
    "relative": dataclasses.replace(LLAMA, positions="relative", scaled_scores=False),
    "bert": bert_config(d_ff=24, **SIZES),
}
# Two rows of 12: documents of 4, 4 and 4 tokens; of 5 and 4, and padding.
LENGTHS = ((4, 4, 4), (5, 4))


def packed():
    tokens = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
    segments, positions = np.zeros((2, 12), np.int32), np.zeros((2, 12), np.int32)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths, 1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    return tokens, segments, positions


def hidden(config, tokens, **options):
    run = jax.jit(lambda params: functional.apply(config, params, jnp.asarray(tokens), None, **options))
    return np.asarray(run(random_params(config)))


def case(name):
    return pytest.param(name, marks=[] if name in ("llama", "bert") else [pytest.mark.slow])


@pytest.mark.parametrize("name", [case(name) for name in CONFIGS])
def test_every_document_is_computed_as_if_it_stood_alone(name):
    config = CONFIGS[name]
    tokens, segments, positions = packed()
    together = hidden(config, tokens, segments=jnp.asarray(segments), positions=jnp.asarray(positions))
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            span = slice(start, start + length)
            alone = hidden(config, tokens[row : row + 1, span])
            np.testing.assert_allclose(together[row, span], alone[0], rtol=1e-4, atol=1e-5)
            start += length


def test_padding_reads_no_document_and_stays_finite():
    tokens, segments, positions = packed()
    options = {"segments": jnp.asarray(segments), "positions": jnp.asarray(positions)}
    before = hidden(LLAMA, tokens, **options)
    changed = np.where(segments == 0, tokens, (tokens + 1) % 50)
    after = hidden(LLAMA, changed, **options)
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(before[1, 9:], after[1, 9:])
    assert (before[1, :9] != after[1, :9]).any()


def test_positions_that_start_again_do_not_show_the_future():
    """Documents read on into each other, as where they are only concatenated: left stays left."""
    tokens, _, positions = packed()
    before = hidden(LLAMA, tokens, positions=jnp.asarray(positions))
    later = tokens.copy()
    later[:, 6:] = (later[:, 6:] + 1) % 50
    after = hidden(LLAMA, later, positions=jnp.asarray(positions))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any()
