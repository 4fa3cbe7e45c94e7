"""The errors a user can cause or meet, each with the exit code that the command line ends with.

A message says what was wrong, what was got, what was expected and what to do, with the field's name:
`global_batch_size=100 must be divisible by data*fsdp=8; use 96 or 104`.
Any other exception is a bug of ours and ends with exit code 1.
"""

from collections.abc import Mapping
from typing import Any


class JaxscaleError(Exception):
    """Base of every error with a message meant for the user.

    Attributes:
      exit_code: what the command line ends with.
      report: what a verb has to report although it failed, as JSON values.
    """

    exit_code = 1

    def __init__(self, message: str, *, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = dict(report or {})


class UsageError(JaxscaleError):
    """A flag, a recipe, a mesh or a configuration is wrong (exit code 2)."""

    exit_code = 2


class DataError(JaxscaleError):
    """An input file is missing, malformed or does not fit the others (exit code 3)."""

    exit_code = 3


class MachineError(JaxscaleError):
    """The machine refuses: disk full, no such device, a folder in use (exit code 4)."""

    exit_code = 4


class VerificationError(JaxscaleError):
    """A committed directory is not what its manifest says (exit code 5)."""

    exit_code = 5


class DivergedError(JaxscaleError):
    """Training produced non-finite values too many times in a row (exit code 6)."""

    exit_code = 6


class DoesNotFitError(JaxscaleError):
    """The plan needs more memory than a device has (exit code 7)."""

    exit_code = 7


class Preempted(JaxscaleError):
    """SIGTERM arrived and the state was saved; the same command goes on (exit code 42)."""

    exit_code = 42


class Interrupted(JaxscaleError):
    """A person pressed Ctrl-C and the state was saved; the same command goes on (exit code 130)."""

    exit_code = 130
