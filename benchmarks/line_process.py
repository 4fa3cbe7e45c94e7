"""A program that answers requests, a line of JSON each; between them it waits and uses no processor."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What one side's settings are must not become the other's.
_OWN = ("XLA_FLAGS", "PYTHONPATH", "JAX_PLATFORMS")


class LineProcess:
    """One side of a comparison, in a process and, where it has one, an environment of its own.

    Args:
      python: of its environment.
      script: what it runs; its first line says that it is ready.
      words: its arguments.
      environment: variables besides those of this process.
    """

    def __init__(
        self, python: Path | str, script: Path, words: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._script = script
        inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
        self._process = subprocess.Popen(
            [python, script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=inherited | {"OMP_WAIT_POLICY": "passive"} | dict(environment or {}),
        )
        self.ready = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._script}: its process ended; run it by hand to see why")
        return json.loads(line)
