"""Planted spikes are found, each once; ordinary noisy curves have none."""

import math

import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.train.spikes import SpikeConfig, robust_z_score, spike_score, with_loss

CONFIG = SpikeConfig(window=64, threshold=12.0)


def curve(seed, num_steps=2000, noise=0.05):
    """A loss that falls as a power of the step, with noise."""
    steps = np.arange(num_steps)
    clean = 2.0 + 8.0 * (steps + 10.0) ** -0.3
    return clean + np.random.default_rng(seed).normal(size=num_steps) * noise


def found(losses):
    window, steps = (), []
    for step, loss in enumerate(losses):
        if spike_score(float(loss), window, CONFIG) is not None:
            steps.append(step)  # rolled back: its loss never enters the window
        else:
            window = with_loss(window, float(loss), CONFIG)
    return steps


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
def test_ordinary_noisy_curves_have_no_spike(seed, noise):
    assert found(curve(seed, noise=noise)) == []


@pytest.mark.parametrize("seed", range(5))
def test_planted_spikes_are_found_and_nothing_else(seed):
    losses = curve(seed)
    planted = [300, 301, 900, 1999]
    losses[planted] += 3.0
    assert found(losses) == planted


def test_a_fall_is_no_spike():
    losses = curve(0)
    losses[600:] -= 1.5
    assert found(losses) == []


def test_nothing_is_a_spike_before_the_window_is_full():
    assert spike_score(1e9, (1.0, 1.1, 0.9) * 21, CONFIG) is None
    assert spike_score(1e9, (1.0, 1.1, 0.9) * 22, CONFIG) is not None


def test_the_score_is_the_formula():
    window = np.random.default_rng(1).gamma(2.0, size=31)
    median = np.median(window)
    expected = (4.0 - median) / (1.4826 * np.median(np.abs(window - median)))
    assert robust_z_score(4.0, window.tolist()) == pytest.approx(expected, rel=1e-12)


def test_a_window_without_spread_and_losses_that_are_not_finite():
    assert robust_z_score(2.0, [2.0] * 5) == 0
    assert robust_z_score(2.1, [2.0] * 5) == math.inf
    assert robust_z_score(1.9, [2.0] * 5) == -math.inf
    full = (1.0,) * 64
    assert spike_score(math.nan, full, CONFIG) is None
    assert with_loss(full, math.inf, CONFIG) == full


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"window": 2}, "window=2"), ({"threshold": 0.0}, "threshold=0.0"), ({"max_rollbacks": -1}, "max_rollbacks=-1")],
)
def test_senseless_configs_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        SpikeConfig(**fields)
