"""Sums of power laws fitted to many data sets at once: Huber's loss of log residuals, many starts, no randomness.

With exponents fixed the sum f(x) = E + sum_k A_k / x_k^a_k is linear in E and A_k. So exponents are searched on a grid,
each with its own linear least squares, which all data sets share as they differ in losses only; the best few cells are
the starts of a Levenberg-Marquardt descent in log E, log A_k and a_k, with Huber's weights renewed at every step
(iteratively reweighted least squares). Everything is batched over data sets and starts, in float64.

References: Golub and Pereyra 1973, "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose
Variables Separate" (fixed exponents); Huber 1964, "Robust Estimation of a Location Parameter"; Marquardt 1963.
"""

import numpy as np
from jaxtyping import Float64

# Published exponents lie between 0.05 and 1; the descent may leave the grid, not the bounds.
_EXPONENTS = np.geomspace(0.02, 3.0, 20)
_EXPONENT_BOUNDS = (1e-3, 6.0)
# A term falls to this part of the least loss where the data want none of it: its logarithm has to stay finite.
_ABSENT = 1e-9
_NUM_STARTS = 4

_MAX_STEPS = 200
_CONVERGED = 1e-10  # of the loss, in one step
_MAX_STEP = 3.0  # in log E, log A and a: further, the model is another one
_DAMPING_BOUNDS = (1e-9, 1e9)
_LESS_DAMPING, _MORE_DAMPING = 0.2, 4.0


def evaluate_sums(parameters: Float64[np.ndarray, "R P"], points: Float64[np.ndarray, "n K"]) -> np.ndarray:
    """E + sum_k A_k / x_k^a_k of each row of parameters at each point, float64 [R n].

    Args:
      parameters: E, A_1 .. A_K, a_1 .. a_K (P = 1 + 2 K).
      points: sizes x, above 0.

    >>> evaluate_sums(np.array([[1.0, 2.0, 0.5]]), np.array([[1.0], [4.0]])).tolist()
    [[3.0, 2.0]]
    """
    num_sizes = points.shape[1]
    terms = parameters[:, None, 1 : 1 + num_sizes] * np.exp(
        -parameters[:, None, 1 + num_sizes :] * np.log(points)[None]
    )
    return parameters[:, :1] + terms.sum(axis=-1)


def fit_sums(
    points: Float64[np.ndarray, "n K"], log_losses: Float64[np.ndarray, "R n"], delta: float
) -> Float64[np.ndarray, "R P"]:
    """The parameters with the least Huber loss of `log_losses - log f(points)`, for each of R data sets.

    Args:
      points: sizes x of the n runs, above 0, the same ones in every data set.
      log_losses: of the runs.
      delta: from where on a residual counts by its size instead of its square.

    >>> points = np.array([[1.0], [4.0], [16.0], [64.0]])
    >>> losses = evaluate_sums(np.array([[1.0, 2.0, 0.5]]), points)
    >>> fit_sums(points, np.log(losses), 0.02).round(4).tolist()
    [[1.0, 2.0, 0.5]]
    """
    logs = np.log(points)
    centre = logs.mean(axis=0)  # A_k is fitted at the runs' mean size, where it depends least on a_k
    scaled = logs - centre
    starts = _starts(scaled, log_losses, delta)
    num_sets, num_starts, num_params = starts.shape
    found, values = _descend(starts.reshape(-1, num_params), scaled, np.repeat(log_losses, num_starts, axis=0), delta)
    best = np.argmin(values.reshape(num_sets, num_starts), axis=1)
    theta = found.reshape(num_sets, num_starts, num_params)[np.arange(num_sets), best]
    num_sizes = points.shape[1]
    exponents = theta[:, 1 + num_sizes :]
    coefficients = np.exp(theta[:, 1 : 1 + num_sizes] + exponents * centre)
    return np.concatenate([np.exp(theta[:, :1]), coefficients, exponents], axis=1)


def leverages(parameters: Float64[np.ndarray, " P"], points: Float64[np.ndarray, "n K"]) -> Float64[np.ndarray, " n"]:
    """How much of each fitted log loss its own measurement decides: the diagonal of the tangent plane's projector.

    Args:
      parameters: of a fit to these points.
      points: sizes x.
    """
    num_sizes = points.shape[1]
    logs = np.log(points)
    theta = parameters.copy()
    theta[: 1 + num_sizes] = np.log(theta[: 1 + num_sizes])
    _, jacobian = _model(theta[None], logs)
    norms = np.linalg.norm(jacobian[0], axis=0)
    basis, singular, _ = np.linalg.svd(jacobian[0] / np.where(norms > 0, norms, 1.0), full_matrices=False)
    return np.sum(basis[:, singular > 1e-9 * singular[0]] ** 2, axis=1)


def _model(theta: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives log f [B n] and its derivatives [B n P] by theta = (log E, log A_k, a_k) [B P], at log sizes [n K]."""
    num_sizes = logs.shape[1]
    log_terms = theta[:, None, 1 : 1 + num_sizes] - theta[:, None, 1 + num_sizes :] * logs[None]
    log_irreducible = np.broadcast_to(theta[:, None, :1], (*log_terms.shape[:2], 1))
    parts = np.concatenate([log_irreducible, log_terms], axis=-1)
    largest = parts.max(axis=-1, keepdims=True)
    log_f = largest + np.log(np.exp(parts - largest).sum(axis=-1, keepdims=True))
    shares = np.exp(parts - log_f)
    return log_f[..., 0], np.concatenate([shares, -logs[None] * shares[..., 1:]], axis=-1)


def _huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(axis=-1)


def _starts(logs: np.ndarray, log_losses: np.ndarray, delta: float) -> np.ndarray:
    """The best cells of the grid of exponents for each data set, as theta [R starts P]."""
    num_points, num_sizes = logs.shape
    grid = np.stack(np.meshgrid(*[_EXPONENTS] * num_sizes, indexing="ij"), axis=-1).reshape(-1, num_sizes)
    powers = np.exp(-grid[:, None, :] * logs[None])  # [G n K]
    # Relative errors, to first order those of the logarithms, under weights that all data sets share.
    weights = np.exp(-log_losses.mean(axis=0))
    design = np.concatenate([np.ones((len(grid), num_points, 1)), powers], axis=-1) * weights[:, None]
    targets = np.exp(log_losses) * weights
    whole = np.einsum("gpn,rn->rgp", np.linalg.pinv(design), targets)
    # Where E would be negative the best is at E = 0.
    without = np.einsum("gpn,rn->rgp", np.linalg.pinv(design[..., 1:]), targets)
    without = np.concatenate([np.zeros_like(without[..., :1]), without], axis=-1)
    linear = np.maximum(np.concatenate([whole, without], axis=1), _ABSENT * np.exp(log_losses.min()))
    fitted = np.einsum("rgp,gnp->rgn", linear, np.tile(design / weights[:, None], (2, 1, 1)))
    values = _huber(log_losses[:, None] - np.log(fitted), delta)
    best = np.argsort(values, axis=1, kind="stable")[:, :_NUM_STARTS]
    rows = np.arange(len(log_losses))[:, None]
    return np.concatenate([np.log(linear[rows, best]), grid[best % len(grid)]], axis=-1)


def _descend(
    theta: np.ndarray, logs: np.ndarray, log_losses: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt from each of B starts [B P]; what it ends at, and the Huber losses there [B]."""
    num_linear = 1 + logs.shape[1]
    floor = log_losses.min() + np.log(_ABSENT)
    theta, damping, active = theta.copy(), np.full(len(theta), 1e-3), np.arange(len(theta))
    values = _huber(log_losses - _model(theta, logs)[0], delta)
    for _ in range(_MAX_STEPS):
        moved = theta[active] + _step(theta[active], logs, log_losses[active], delta, damping[active])
        moved[:, :num_linear] = np.maximum(moved[:, :num_linear], floor)
        moved[:, num_linear:] = np.clip(moved[:, num_linear:], *_EXPONENT_BOUNDS)
        before, after = values[active], _huber(log_losses[active] - _model(moved, logs)[0], delta)
        better = after < before
        theta[active[better]], values[active[better]] = moved[better], after[better]
        scaled = damping[active] * np.where(better, _LESS_DAMPING, _MORE_DAMPING)
        damping[active] = np.clip(scaled, *_DAMPING_BOUNDS)
        ended = np.where(better, before - after <= _CONVERGED * before, scaled > _DAMPING_BOUNDS[1])
        active = active[~ended]
        if not len(active):
            break
    return theta, values


def _step(theta: np.ndarray, logs: np.ndarray, log_losses: np.ndarray, delta: float, damping: np.ndarray) -> np.ndarray:
    """(J'WJ + damping diag(J'WJ)) step = J'W r, with Huber's weights W = min(1, delta / |r|)."""
    log_f, jacobian = _model(theta, logs)
    residuals = log_losses - log_f
    weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), np.finfo(np.float64).tiny))
    weighted = jacobian * weights[..., None]
    normal = np.swapaxes(weighted, 1, 2) @ jacobian
    scale = np.sqrt(np.einsum("bpp->bp", normal))
    scale = np.where(scale > 0, scale, 1.0)
    normal = normal / (scale[:, :, None] * scale[:, None, :]) + damping[:, None, None] * np.eye(theta.shape[1])
    gradient = np.einsum("bnp,bn->bp", weighted, residuals) / scale
    return np.clip(np.linalg.solve(normal, gradient[..., None])[..., 0] / scale, -_MAX_STEP, _MAX_STEP)
