"""Which kernel computes an attention: a table of what each one needs, and the first need that a case does not meet."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from jaxscale.errors import UsageError
from jaxscale.nn.attention_blockwise import BLOCK

Kernel = Literal["plain", "blockwise", "recomputed", "splash", "cudnn"]
AttentionSetting = Literal["auto", "plain", "blockwise", "recomputed", "splash", "cudnn"]

# The first that can compute a case is taken.
_OF_PLATFORM: dict[str, tuple[Kernel, ...]] = {
    "cpu": ("blockwise", "recomputed"),
    "tpu": ("splash",),
    "cuda": ("cudnn",),
}

# Splash attention reads positions in blocks of a TPU's 128 lanes. The widths are those compiled for TPUs in the tests.
SPLASH_BLOCK, _SPLASH_WIDTHS = 128, (64, 128, 256)
# What cuDNN's flash attention takes on every NVIDIA GPU that has one; from Hopper on it takes widths up to 256.
# Reference: `check_is_flash_attention` in jax/_src/cudnn/fused_attention_stablehlo.py of jax 0.10.2
_CUDNN_WIDTH_STEP, _CUDNN_MAX_WIDTH = 8, 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One attention of a program, and the devices it is for.

    Attributes:
      platform: `tpu`, `cuda`, or another.
      dtype: of queries, keys and values: the compute dtype.
      query_shape: [B S H C].
      key_shape: [B T K C].
      has_bias: whether something is added to the scores.
      has_dropout: whether weights are dropped.
      has_groups: whether documents share rows, or some positions are padding.
      causal: whether no query reads to its right.
      has_rule: whether causality and groups say all of who may read whom; else there is only an array that says it.
      misplaced: why the parts that devices hold can't be computed each by itself; None where they can.
    """

    platform: str
    dtype: str
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    has_bias: bool
    has_dropout: bool
    has_groups: bool
    causal: bool
    has_rule: bool
    misplaced: str | None

    @property
    def lengths(self) -> tuple[int, int]:
        """S and T."""
        return self.query_shape[1], self.key_shape[1]

    @property
    def width(self) -> int:
        """C."""
        return self.query_shape[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What computes an attention.

    Attributes:
      kernel: which one.
      reason: why, in words.
    """

    kernel: Kernel
    reason: str


# In the order that they are asked in: a reason that a case does not suit, or None where it does.
_Need = Callable[[Case], str | None]
_ANYWHERE: tuple[_Need, ...] = (
    lambda case: "a bias (relative positions) is added to the scores" if case.has_bias else None,
    lambda case: "dropout of the weights" if case.has_dropout else None,
    lambda case: None if case.has_rule else "who may read whom is an array, not a rule",
    lambda case: case.misplaced,
)
_NEEDS: dict[Kernel, tuple[_Need, ...]] = {
    "blockwise": (
        lambda case: None if case.causal else "every position reads to its right too: there is nothing to leave out",
        *_ANYWHERE,
        lambda case: (
            None
            if case.lengths[0] == case.lengths[1] and case.lengths[0] % BLOCK == 0 and case.lengths[0] > BLOCK
            else f"{_lengths(case)} not several blocks of {BLOCK}"
        ),
    ),
    "recomputed": (
        lambda case: "no query reads to its right: that is for blocks of queries" if case.causal else None,
        *_ANYWHERE,
    ),
    "splash": (
        lambda case: None if case.platform == "tpu" else f"it runs on TPUs, not on {case.platform}",
        lambda case: None if case.dtype == "bfloat16" else f"it multiplies in bfloat16, compute_dtype is {case.dtype}",
        *_ANYWHERE,
        lambda case: None if case.width in _SPLASH_WIDTHS else f"heads are {case.width} wide; it takes 64, 128 and 256",
        lambda case: (
            None if all(n % SPLASH_BLOCK == 0 for n in case.lengths) else f"{_lengths(case)} no multiple of 128"
        ),
    ),
    "cudnn": (
        lambda case: None if case.platform == "cuda" else f"it runs on NVIDIA GPUs, not on {case.platform}",
        lambda case: None if case.dtype in ("bfloat16", "float16") else f"it has no {case.dtype}, only 16 bits",
        *_ANYWHERE,
        lambda case: "jax gives it no documents that share rows, and no padding" if case.has_groups else None,
        lambda case: (
            None
            if case.width % _CUDNN_WIDTH_STEP == 0 and case.width <= _CUDNN_MAX_WIDTH
            else f"heads are {case.width} wide; it takes multiples of 8 up to 128"
        ),
    ),
}


def reason_against(kernel: Kernel, case: Case) -> str | None:
    """The first need of a kernel that a case does not meet; None where it can compute it.

    Args:
      kernel: the plain attention needs nothing.
      case: the attention.
    """
    return next((reason for need in _NEEDS.get(kernel, ()) if (reason := need(case)) is not None), None)


def choose(setting: AttentionSetting, case: Case) -> Choice:
    """What computes a case, by the user's setting; `auto` takes the platform's kernel where that can.

    Raises:
      UsageError: the setting names a kernel that can't compute it.
    """
    if setting == "plain":
        return Choice(kernel="plain", reason="attention=plain")
    if setting != "auto":
        against = reason_against(setting, case)
        if against is None:
            return Choice(kernel=setting, reason=f"{setting=!s}")
        raise UsageError(f"attention={setting} can't compute this job's attention: {against}; use auto or plain")
    reasons = []
    for kernel in _OF_PLATFORM.get(case.platform, ()):
        against = reason_against(kernel, case)
        if against is None:
            return Choice(kernel=kernel, reason=f"a kernel of {case.platform}")
        reasons.append(f"not {kernel}: {against}")
    return Choice(kernel="plain", reason="; ".join(reasons) or f"there is no kernel for {case.platform}")


def has_kernel(setting: AttentionSetting, platform: str) -> bool:
    """Whether anything but the plain attention may be chosen, so that a program has to be looked at."""
    return setting not in ("auto", "plain") or (setting == "auto" and platform in _OF_PLATFORM)


def summary(choices: Iterable[Choice]) -> tuple[str, ...]:
    """Choices for people, equal ones counted.

    >>> summary([Choice(kernel="splash", reason="a kernel of tpu")] * 2)
    ('splash x 2 (a kernel of tpu)',)
    """
    counted = collections.Counter(choices)
    return tuple(f"{choice.kernel} x {number} ({choice.reason})" for choice, number in counted.items())


def _lengths(case: Case) -> str:
    s, t = case.lengths
    return f"{s} positions are" if s == t else f"{s} positions that read {t} are"
