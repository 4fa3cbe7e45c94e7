"""Scaling laws: a loss as a sum of power laws of sizes, fitted robustly to a few runs, with intervals and predictions.

A law of K sizes x_1 .. x_K (parameters N, training examples D) says

    L(x) = E + sum over k of A_k / x_k^a_k,        E, A_k, a_k > 0

One size gives L(N) = E + A / N^alpha, two the joint law L(N, D) = E + A / N^alpha + B / D^beta. Runs are off from the
law by factors, not by terms: residuals are r_i = log L_i - log L(x_i), and the fit minimises the sum of their Huber
losses, r^2 / 2 where |r| <= delta and delta (|r| - delta / 2) beyond.

Intervals come from a residual bootstrap. With n points, P = 1 + 2 K parameters and leverages h_i, the residuals
r_i / sqrt(1 - h_i), centred and scaled by sqrt(n / (n - 1)), are drawn anew for every point of every resample. As few
residuals tell their own spread badly, each resample also draws the spread: all its residuals are multiplied by
sqrt(nu / chi2_nu), nu = n - P. Of 600 planted laws of one size (12 runs, noise of 1 %, 200 resamples) the 95 % interval
held the true exponent in 93.5 %, and in 90.8 % without these two factors. That runs err independently, by factors of
one distribution, is assumed.

References: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section 3.3,
https://arxiv.org/abs/2203.15556; Fang et al. 2024, "Scaling Laws For Dense Retrieval", section 4,
https://arxiv.org/abs/2403.18684; Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 6.2.3.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from jaxscale.errors import DataError, UsageError
from jaxscale.power_sums import evaluate_sums, fit_sums, leverages

# Residuals beyond it count by their size, not by their square. Hoffmann et al. take 1e-3; small runs differ by about
# 1 % from seed to seed, and a delta far below that noise throws away what least squares knows of it.
DEFAULT_DELTA = 0.02
DEFAULT_LEVEL = 0.95
DEFAULT_NUM_RESAMPLES = 400

# E, A and a of one size: three of its values are the least that tell them apart.
_MIN_DISTINCT = 3
# Sizes that move together tell their terms apart by the curvature of the sum alone, which noise hides.
_MAX_CORRELATION = 0.999
# Of the largest loss: a term that falls by less from the smallest to the largest size is not there.
_SMALLEST_SHARE = 1e-6
# A point that alone decides a parameter has no residual of its own: it is not blown up further than by this leverage.
_MAX_LEVERAGE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the interval around it."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies within.

        >>> Interval(value=1.0, low=0.5, high=2.0).holds(2.5)
        False
        """
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A / x^a, what a size adds to the irreducible loss.

    Attributes:
      size: the name of x.
      coefficient: A, in the loss's unit times that of x^a.
      exponent: a.
    """

    size: str
    coefficient: Interval
    exponent: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law, as plain data.

    Attributes:
      irreducible: E, the loss that no size takes away.
      terms: of every size.
      level: coverage that the intervals aim at.
      delta: of the Huber loss.
      num_points: that it was fitted to.
      num_resamples: of the bootstrap.
      rms_residual: root of the mean square of log L_i - log L(x_i); 0.01 is about 1 %.
    """

    irreducible: Interval
    terms: tuple[Term, ...]
    level: float
    delta: float
    num_points: int
    num_resamples: int
    rms_residual: float

    def at(self, sizes: Mapping[str, float]) -> float:
        """The loss that the law says for sizes, each above 0.

        Args:
          sizes: a value for each of the law's sizes.

        Raises:
          UsageError: a size is missing, unknown, or not a number above 0.
        """
        return float(evaluate_sums(self._parameters, self._point(sizes))[0, 0])

    @property
    def _parameters(self) -> Float64[np.ndarray, "1 P"]:
        numbers = [self.irreducible, *(t.coefficient for t in self.terms), *(t.exponent for t in self.terms)]
        return np.array([[number.value for number in numbers]])

    def _point(self, sizes: Mapping[str, float]) -> Float64[np.ndarray, "1 K"]:
        names = [term.size for term in self.terms]
        if sorted(sizes) != sorted(names):
            raise UsageError(f"sizes: got {', '.join(sizes) or 'none'}, expected {', '.join(names)}")
        for name in names:
            if not (math.isfinite(sizes[name]) and sizes[name] > 0):
                raise UsageError(f"{name}={sizes[name]} must be a number above 0")
        return np.array([[sizes[name] for name in names]], np.float64)

    def __str__(self) -> str:
        parts = [f"{term.coefficient.value:.4g} / {term.size}^{term.exponent.value:.3f}" for term in self.terms]
        names = ", ".join(term.size for term in self.terms)
        return " + ".join([f"L({names}) = {self.irreducible.value:.4g}", *parts])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFit:
    """A law with the resamples that tell how sure it is.

    Attributes:
      law: the fit and its intervals.
      resampled: the parameters E, A_1 .. A_K, a_1 .. a_K (P of them) fitted to each of R resamples.
      noise: one residual for each resample, as a run that was not measured yet may have.
    """

    law: Law
    resampled: Float64[np.ndarray, "R P"]
    noise: Float64[np.ndarray, " R"]

    def predict(self, sizes: Mapping[str, float]) -> Interval:
        """The loss of one new run, with an interval that holds the law's uncertainty and a run's own noise.

        Args:
          sizes: each of the law's sizes, above 0.

        Raises:
          UsageError: a size is missing, unknown, or not a number above 0.

        >>> runs = [1e4, 1e5, 1e6, 1e7, 1e8]
        >>> fit = fit_law({"N": runs}, [0.5 + 20 / n**0.3 for n in runs])
        >>> round(fit.predict({"N": 1e10}).value, 4)
        0.52
        """
        new_runs = evaluate_sums(self.resampled, self.law._point(sizes))[:, 0] * np.exp(self.noise)
        return _interval(self.law.at(sizes), new_runs, self.law.level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well the law of the other runs foretold the largest one.

    Attributes:
      sizes: of the run held out.
      measured: its loss.
      predicted: by the law fitted to the others.
      relative_error: predicted / measured - 1.
      within: whether the measured loss lies in the predicted interval.
    """

    sizes: dict[str, float]
    measured: float
    predicted: Interval
    relative_error: float
    within: bool


def fit_law(
    sizes: Mapping[str, Sequence[float]],
    losses: Sequence[float],
    *,
    delta: float = DEFAULT_DELTA,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> LawFit:
    """Fits a law to runs; a pure function of its arguments.

    Args:
      sizes: of each name the n runs' sizes, above 0; {"N": ...} for L(N), {"N": ..., "D": ...} for the joint law.
      losses: of the n runs, above 0.
      delta: of the Huber loss, in units of log L.
      level: coverage that the intervals aim at, between 0 and 1.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      DataError: the points can't tell the law: too few of them, a size with fewer than 3 values, two sizes that move
        together, a point given twice, a number that is not finite and above 0, or a loss that does not fall.
      UsageError: another argument is out of its range.

    >>> runs = [1e4, 1e5, 1e6, 1e7, 1e8]
    >>> print(fit_law({"N": runs}, [0.5 + 20 / n**0.3 for n in runs]).law)
    L(N) = 0.5 + 20 / N^0.300
    """
    _check_options(delta, level, num_resamples)
    points, targets = _checked_points(sizes, losses)
    estimate = fit_sums(points, np.log(targets)[None], delta)
    fitted = np.log(evaluate_sums(estimate, points))
    _check_it_falls(estimate, points, np.exp(fitted[0]), list(sizes))
    residuals = np.log(targets) - fitted[0]
    drawn = _draw_residuals(residuals, leverages(estimate[0], points), estimate.shape[1], num_resamples, seed)
    resampled = fit_sums(points, fitted + drawn[:, :-1], delta)
    intervals = [_interval(float(value), column, level) for value, column in zip(estimate[0], resampled.T, strict=True)]
    coefficients, exponents = intervals[1 : 1 + len(sizes)], intervals[1 + len(sizes) :]
    law = Law(
        irreducible=intervals[0],
        terms=tuple(
            Term(size=name, coefficient=coefficient, exponent=exponent)
            for name, coefficient, exponent in zip(sizes, coefficients, exponents, strict=True)
        ),
        level=level,
        delta=delta,
        num_points=len(targets),
        num_resamples=num_resamples,
        rms_residual=float(np.sqrt(np.mean(residuals**2))),
    )
    return LawFit(law=law, resampled=resampled, noise=drawn[:, -1])


def hold_out_largest(
    sizes: Mapping[str, Sequence[float]],
    losses: Sequence[float],
    *,
    delta: float = DEFAULT_DELTA,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> HeldOut:
    """Fits the law without the run whose product of sizes is greatest (of equals the last), and predicts that run.

    Args:
      sizes: as `fit_law`.
      losses: as `fit_law`.
      delta: as `fit_law`.
      level: as `fit_law`.
      num_resamples: as `fit_law`.
      seed: as `fit_law`.

    Raises:
      DataError: the other runs can't tell the law.
      UsageError: as `fit_law`.

    >>> runs = [1e4, 1e5, 1e6, 1e7, 1e8]
    >>> held_out = hold_out_largest({"N": runs}, [0.5 + 20 / n**0.3 for n in runs])
    >>> held_out.sizes, abs(held_out.relative_error) < 1e-6
    ({'N': 100000000.0}, True)
    """
    points, targets = _checked_points(sizes, losses)
    products = np.log(points).sum(axis=1)
    largest = int(np.flatnonzero(products == products.max())[-1])
    others = np.delete(np.arange(len(targets)), largest)
    rest = {name: points[others, column].tolist() for column, name in enumerate(sizes)}
    fit = fit_law(rest, targets[others].tolist(), delta=delta, level=level, num_resamples=num_resamples, seed=seed)
    at = {name: float(points[largest, column]) for column, name in enumerate(sizes)}
    predicted, measured = fit.predict(at), float(targets[largest])
    return HeldOut(
        sizes=at,
        measured=measured,
        predicted=predicted,
        relative_error=predicted.value / measured - 1,
        within=predicted.holds(measured),
    )


def _check_options(delta: float, level: float, num_resamples: int) -> None:
    if not (math.isfinite(delta) and delta > 0):
        raise UsageError(f"delta={delta} must be above 0; {DEFAULT_DELTA} is for losses that are off by a few percent")
    if not 0 < level < 1:
        raise UsageError(f"level={level} must lie between 0 and 1")
    if num_resamples < 1:
        raise UsageError(f"num_resamples={num_resamples} must be at least 1; intervals want 200 or more")


def _checked_points(
    sizes: Mapping[str, Sequence[float]], losses: Sequence[float]
) -> tuple[Float64[np.ndarray, "n K"], Float64[np.ndarray, " n"]]:
    """The points as arrays, where they can tell a law."""
    if not sizes:
        raise UsageError("sizes: got none, expected at least one, such as N")
    targets = np.asarray(losses, np.float64)
    for name, values in sizes.items():
        if len(values) != len(targets):
            raise UsageError(f"{name} has {len(values)} values for {len(targets)} losses; give one for each run")
    points = np.stack([np.asarray(values, np.float64) for values in sizes.values()], axis=1)
    for name, values in zip([*sizes, "loss"], [*points.T, targets], strict=True):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise DataError(
                f"{name} of run {bad[0]} is {values[bad[0]]}, expected a number above 0; leave that run out"
            )
    num_needed = 2 + 2 * len(sizes)
    if len(targets) < num_needed:
        raise DataError(
            f"{len(targets)} runs can't tell a law with {num_needed - 1} parameters and how sure it is; expected at "
            f"least {num_needed}, and better twice as many"
        )
    for name, values in zip(sizes, points.T, strict=True):
        num_distinct = len(np.unique(values))
        if num_distinct < _MIN_DISTINCT:
            raise DataError(
                f"{name} takes {num_distinct} different values, expected at least {_MIN_DISTINCT}: with fewer, its "
                "exponent can be anything; measure more sizes, or leave it out of the law"
            )
    _check_apart(points, targets, list(sizes))
    return points, targets


def _check_apart(points: Float64[np.ndarray, "n K"], targets: Float64[np.ndarray, " n"], names: Sequence[str]) -> None:
    """Refuses a point given twice, and sizes that can't be told apart."""
    rows = np.column_stack([points, targets])
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    if len(distinct) < len(rows):
        twice = ", ".join(f"{v:g}" for v in distinct[np.argmax(counts > 1)])
        raise DataError(
            f"the point ({twice}) of {', '.join(names)} and loss is given {counts.max()} times; give each run once "
            "(another seed has another loss)"
        )
    correlations = np.atleast_2d(np.corrcoef(np.log(points), rowvar=False)) - np.eye(len(names))
    if np.abs(correlations).max() > _MAX_CORRELATION:
        first, second = divmod(int(np.argmax(np.abs(correlations))), len(names))
        raise DataError(
            f"{names[first]} and {names[second]} grow together in all runs, so that nothing tells their terms apart; "
            "vary one while the other stays, or leave it out of the law"
        )


def _check_it_falls(
    estimate: Float64[np.ndarray, "1 P"],
    points: Float64[np.ndarray, "n K"],
    fitted: Float64[np.ndarray, " n"],
    names: Sequence[str],
) -> None:
    num_sizes = len(names)
    terms = estimate[0, 1 : 1 + num_sizes] / points ** estimate[0, 1 + num_sizes :]
    for name, falls in zip(names, np.ptp(terms, axis=0), strict=True):
        if falls < _SMALLEST_SHARE * fitted.max():
            raise DataError(f"the loss does not fall as {name} grows, so that there is no law of {name} to fit")


def _draw_residuals(
    residuals: Float64[np.ndarray, " n"],
    leverage: Float64[np.ndarray, " n"],
    num_params: int,
    num_resamples: int,
    seed: int,
) -> Float64[np.ndarray, "R n+1"]:
    """The bootstrap's residuals: for each resample one of every point, and one of a run that is not there yet."""
    rng = np.random.default_rng(seed)
    num_points = len(residuals)
    spread = residuals / np.sqrt(1 - np.minimum(leverage, _MAX_LEVERAGE))
    centred = (spread - spread.mean()) * math.sqrt(num_points / (num_points - 1))
    freedom = num_points - num_params
    drawn = rng.choice(centred, (num_resamples, num_points + 1))
    return drawn * np.sqrt(freedom / rng.chisquare(freedom, (num_resamples, 1)))


def _interval(value: float, resampled: Float64[np.ndarray, " R"], level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))
