"""Masked tokens: the shares that are hidden, replaced and kept, and draws that belong to the sample."""

import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.train.masking import MaskingConfig, mask_tokens
from jaxscale.train.token_loss import NO_TARGET

OPTIONS = {"mask_id": 4, "vocab_size": 1000, "seed": 1}


def masked(tokens, real, ids, **options):
    return mask_tokens(tokens, real, np.asarray(ids), config=MaskingConfig(**options), **OPTIONS)


def test_the_shares_are_those_of_the_paper():
    tokens = np.full((200, 512), 7, np.int32)
    real = np.ones(tokens.shape, bool)
    real[:, 500:] = False
    made, targets = masked(tokens, real, range(200))
    predicted = targets != NO_TARGET
    assert (targets[predicted] == 7).all()
    assert not predicted[:, 500:].any()
    assert predicted[:, :500].mean() == pytest.approx(0.15, abs=0.005)
    assert (made[predicted] == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (made[predicted] == 7).mean() == pytest.approx(0.1, abs=0.01)
    assert len(set(made[predicted])) > 500
    assert (made[~predicted] == 7).all()


def test_a_row_s_draws_are_those_of_its_sample():
    tokens = np.random.default_rng(0).integers(5, 1000, (4, 64)).astype(np.int32)
    real = np.ones(tokens.shape, bool)
    made, targets = masked(tokens, real, [10, 11, 12, 13])
    alone, wanted = masked(tokens[2:3], real[2:3], [12])
    np.testing.assert_array_equal(made[2:3], alone)
    np.testing.assert_array_equal(targets[2:3], wanted)
    other, _ = masked(tokens[2:3], real[2:3], [13])
    assert (other != alone).any()


def test_refuses_shares_that_are_none():
    for options in ({"rate": 0.0}, {"rate": 1.5}, {"masked_share": 0.9, "random_share": 0.2}, {"random_share": -0.1}):
        with pytest.raises(UsageError):
            MaskingConfig(**options)
