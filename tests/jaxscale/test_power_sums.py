"""The batched fit beside scipy's solver, and the leverages beside a projector computed plainly."""

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxscale.power_sums import evaluate_sums, fit_sums, leverages

ONE = np.geomspace(1e5, 1e8, 12)[:, None]
TWO = np.array([(n, d) for n in np.geomspace(1e5, 1e8, 4) for d in np.geomspace(1e4, 1e6, 3)])
LAWS = {"one": (ONE, [0.5, 75.0, 0.35]), "two": (TWO, [0.5, 60.0, 15.0, 0.35, 0.28])}
DELTA = 0.02


def huber_sum(theta, points, log_losses):
    """The objective as its definition reads; theta has logarithms of E and A at the centre of log sizes."""
    num_sizes = points.shape[1]
    logs = np.log(points) - np.log(points).mean(axis=0)
    total = np.exp(theta[0])
    for k in range(num_sizes):
        total = total + np.exp(theta[1 + k] - theta[1 + num_sizes + k] * logs[:, k])
    residuals = np.abs(log_losses - np.log(total))
    return sum(0.5 * r**2 if r <= DELTA else DELTA * (r - DELTA / 2) for r in residuals)


def objective_of(parameters, points, log_losses):
    residuals = np.abs(log_losses - np.log(evaluate_sums(parameters[None], points)[0]))
    return np.where(residuals <= DELTA, residuals**2 / 2, DELTA * (residuals - DELTA / 2)).sum()


@pytest.mark.parametrize("name", LAWS)
def test_without_noise_the_planted_law_is_found(name):
    points, planted = LAWS[name]
    found = fit_sums(points, np.log(evaluate_sums(np.array([planted]), points)), DELTA)
    np.testing.assert_allclose(found[0], planted, rtol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_no_start_of_a_plain_solver_finds_a_better_fit(name):
    """Nelder-Mead from 8 random starts on the objective as written; also with an outlier of 30 %."""
    points, planted = LAWS[name]
    rng = np.random.default_rng(3)
    truth = np.log(evaluate_sums(np.array([planted]), points))
    noisy = truth + 0.01 * rng.standard_normal((2, len(points)))
    noisy[1, 4] += 0.3
    found = fit_sums(points, noisy, DELTA)
    num_sizes = points.shape[1]
    for log_losses, ours in zip(noisy, found, strict=True):
        best = min(
            minimize(
                huber_sum,
                np.concatenate([rng.uniform(-3, 0, 1 + num_sizes), rng.uniform(0.1, 0.9, num_sizes)]),
                (points, log_losses),
                method="Nelder-Mead",
                options={"maxiter": 2000, "xatol": 1e-6, "fatol": 1e-10},
            ).fun
            for _ in range(8)
        )
        assert objective_of(ours, points, log_losses) <= best * 1.0001


def test_an_outlier_moves_the_robust_fit_less_than_least_squares():
    points, planted = LAWS["one"]
    log_losses = np.log(evaluate_sums(np.array([planted]), points))
    log_losses = log_losses + 0.003 * np.random.default_rng(0).standard_normal(log_losses.shape)
    log_losses[0, -2] += 0.2
    robust, squares = (fit_sums(points, log_losses, delta)[0, -1] for delta in (0.01, 1e3))
    assert abs(robust - planted[-1]) < 0.3 * abs(squares - planted[-1])


def test_data_sets_fitted_together_are_fitted_as_alone():
    points, planted = LAWS["two"]
    truth = np.log(evaluate_sums(np.array([planted]), points))
    sets = truth + 0.01 * np.random.default_rng(1).standard_normal((5, len(points)))
    together = evaluate_sums(fit_sums(points, sets, DELTA), points)
    alone = np.concatenate([evaluate_sums(fit_sums(points, row[None], DELTA), points) for row in sets])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_leverages_are_those_of_the_tangent_plane():
    points, planted = LAWS["two"]
    planted = np.array(planted)
    steps = np.diag(planted * 1e-6)
    ahead, behind = (np.log(evaluate_sums(planted + sign * steps, points)) for sign in (1, -1))
    jacobian = ((ahead - behind) / 2).T
    expected = np.diag(jacobian @ np.linalg.pinv(jacobian))
    np.testing.assert_allclose(leverages(planted, points), expected, atol=1e-3)
    assert leverages(planted, points).sum() == pytest.approx(5)
