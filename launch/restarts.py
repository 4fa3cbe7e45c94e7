"""Whether processes that ended are started again: the exit-code table as pure functions, without any process."""

import dataclasses
from collections.abc import Sequence

# A process ended itself because it can't go on without another one, which it has named. Above all signals' codes.
LOST_PEER = 200
_DONE, _BUG, _PREEMPTED, _INTERRUPTED = 0, 1, 42, 130
# Codes with a message for the user: starting again meets the same thing again.
_REFUSALS = frozenset(range(2, 8))
# What a shell adds to the number of the signal that ended a program.
_SIGNAL_BASE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """How one start of all processes came to its end.

    Attributes:
      code: exit code of the start as a whole, see `code_of_all`.
      step: the last step that is known to have been done; None before any.
    """

    code: int
    step: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from an ending, and why, in words for the log."""

    restart: bool
    reason: str


def shell_code(returncode: int) -> int:
    """The exit code as a shell reports it, of what `subprocess` does: a signal's number is negative there.

    >>> shell_code(-9), shell_code(42)
    (137, 42)
    """
    return _SIGNAL_BASE - returncode if returncode < 0 else returncode


def is_restartable(code: int) -> bool:
    """Whether a start that ended so may be made again.

    >>> [code for code in (0, 1, 2, 6, 42, 127, 128, 130, 131, 137, 255) if is_restartable(code)]
    [42, 127, 131, 137, 255]
    """
    return code in (_PREEMPTED, 127) or 131 <= code <= 255


def code_of_all(codes: Sequence[int]) -> int:
    """The code of a start, of the codes of the processes that ended by themselves at about the same time.

    One process that is lost makes the others fail in whatever they were doing with it, mostly as a bug (1). A person's
    wish goes before all, then a refusal, which names its cause; then a loss; a bug last.

    Args:
      codes: as a shell reports them, at least one.

    >>> code_of_all([0, 0]), code_of_all([1, 137, 1]), code_of_all([134, 6, 0]), code_of_all([42, 137, 130])
    (0, 137, 6, 130)
    """
    return min(codes, key=_rank)


def _rank(code: int) -> tuple[int, int]:
    if code == _INTERRUPTED:
        return 0, code
    if code in _REFUSALS:
        return 1, code
    if is_restartable(code):
        return (3, code) if code == _PREEMPTED else (2, code)
    return (5, code) if code == _DONE else (4, code)


def decide(endings: Sequence[Ending], *, max_restarts: int, asked_to_stop: bool) -> Decision:
    """What to do after the last of these endings.

    Args:
      endings: of all starts so far, oldest first.
      max_restarts: how often to start again, over the whole life of the supervisor.
      asked_to_stop: whether the supervisor itself got a signal, and passed it on.

    >>> killed = Ending(code=137, step=40)
    >>> decide([killed], max_restarts=3, asked_to_stop=False)
    Decision(restart=True, reason='code 137 at step 40')
    >>> decide([killed, killed], max_restarts=3, asked_to_stop=False)
    Decision(restart=False, reason='code 137 at step 40, twice at the same step')
    """
    last = endings[-1]
    ended = f"code {last.code} at step {last.step}" if last.step is not None else f"code {last.code} before any step"
    if last.code == _DONE:
        return Decision(restart=False, reason="done")
    if asked_to_stop:
        return Decision(restart=False, reason=f"{ended}, after a signal that was passed on")
    if not is_restartable(last.code):
        return Decision(restart=False, reason=f"{ended}, which a new start would not mend")
    if last.code != _PREEMPTED and last in endings[-2:-1]:
        return Decision(restart=False, reason=f"{ended}, twice at the same step")
    if len(endings) > max_restarts:
        return Decision(restart=False, reason=f"{ended}, after {max_restarts} restarts (--max-restarts)")
    return Decision(restart=True, reason=ended)


def backoff_s(num_restarts: int, *, first_s: float, longest_s: float) -> float:
    """How long to wait before restart number `num_restarts`, from 1: twice as long each time.

    >>> [backoff_s(n, first_s=1.0, longest_s=30.0) for n in (1, 2, 3, 9)]
    [1.0, 2.0, 4.0, 30.0]
    """
    return float(min(first_s * 2.0 ** min(num_restarts - 1, 32), longest_s))
