"""JSON objects of other projects' files, read with errors that name the file and the key."""

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

from jaxscale.errors import DataError

T = TypeVar("T")


class JsonObject:
    """The object that a JSON file holds; unlike our own files it may have keys that we do not know."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
          DataError: there is none, or it holds no JSON object.
        """
        self.path = path
        self.values: dict[str, Any] = self._read(path)
        self._where = str(path)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: got a {type(values).__name__}, expected an object")
        return values

    def within(self, key: str) -> "JsonObject":
        """The object at `key`, without keys where there is none; its errors name both."""
        inner = copy.copy(self)
        inner.values = self.optional(key, dict, {})
        inner._where = f"{self._where}: {key}"
        return inner

    def require(self, key: str, kind: type[T]) -> T:
        """The value of `key`.

        Raises:
          DataError: it is missing or not a `kind`.
        """
        if key not in self.values:
            raise DataError(f"{self._where}: {key!r} is missing, expected a {kind.__name__}")
        value = self.values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise DataError(f"{self._where}: {key}={value!r}, expected a {kind.__name__}")
        return value

    def optional(self, key: str, kind: type[T], absent: T) -> T:
        """The value of `key`, or `absent`, which is what its format says that leaving it out (or null) means."""
        return self.require(key, kind) if self.values.get(key) is not None else absent

    def refuse_unless(self, key: str, kind: type[T], expected: T) -> None:
        """Refuses a setting that changes the model in a way that is not supported here; absent is fine.

        Raises:
          DataError: it is there and something else.
        """
        value = self.optional(key, kind, expected)
        if value != expected:
            raise DataError(f"{self._where}: {key}={value!r} is not supported, only {expected!r}")
