"""Frozen dataclasses to JSON and back, strictly: an unknown, missing or mistyped field is an error.

`encode` gives plain JSON values, `decode` rebuilds the dataclass from its annotations, `canonical` gives the one
byte string that a value has (sorted keys, no spaces), and `fingerprint` hashes it. Jobs, contracts and manifests
are written with it, so that what a run *is* can be compared by one hash.

Fields that `__init__` does not take are derived from the others: they are neither written nor read.
A field that came later (`added`) is written only where it is not its default: JSON from before it still reads, and what
was hashed before it came keeps its hash.
Unions of dataclasses are told apart by a `"type"` key that holds the class's name; one class of a union may go
unmarked, as it was before there were others, and is read where there is no such key.
"""

import dataclasses
import enum
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from jaxscale.errors import DataError

T = TypeVar("T")

_ADDED = "came after JSON of its class was written"


def encode(value: Any) -> Any:
    """Returns `value` as plain JSON values (dict, list, str, int, float, bool, None).

    Args:
      value: a dataclass, enum, path, tuple, list, dict with string keys, or a JSON scalar.

    Raises:
      TypeError: for anything else; a job holds data only.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     x: int
    ...     tags: tuple[str, ...] = ()
    >>> encode(Point(3, ("a",)))
    {'x': 3, 'tags': ['a']}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: encode(_widen(f.type, getattr(value, f.name)))
            for f in dataclasses.fields(value)
            if f.init and not (_was_added(f) and getattr(value, f.name) == f.default)
        }
        return {"type": type(value).__name__, **fields} if _is_union_member(type(value)) else fields
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {_string_key(k): encode(v) for k, v in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """Rebuilds a `cls` from JSON values written by `encode`.

    Args:
      cls: the dataclass (or any annotation) expected.
      value: JSON values.
      where: the path of `value` in its file, for messages.

    Raises:
      DataError: naming the field, what was got and what was expected.
    """
    return typing.cast(T, _decode(cls, value, where or getattr(cls, "__name__", str(cls))))


def canonical(value: Any) -> bytes:
    """The one byte string of a value: JSON with sorted keys, no spaces, UTF-8, no NaN.

    >>> canonical({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    text = json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def pretty(value: Any) -> str:
    """The JSON of a value for people: indented, keys sorted, one line end at its end; not what is hashed.

    >>> print(pretty({"b": 1, "a": [True]}), end="")
    {
      "a": [
        true
      ],
      "b": 1
    }
    """
    return json.dumps(encode(value), indent=2, sort_keys=True) + "\n"


def fingerprint(value: Any) -> str:
    """The SHA-256 of `canonical(value)`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def union_member(cls: type[T]) -> type[T]:
    """Marks a dataclass as one of several that a field may hold; its JSON carries a `"type"`."""
    cls.__json_union_member__ = True  # type: ignore[attr-defined]
    return cls


def added(default: T) -> T:
    """The default of a dataclass's field that came after JSON of the class was written.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Point:
    ...     x: int
    ...     label: str = added("")
    >>> encode(Point(x=3)), encode(Point(x=3, label="a"))
    ({'x': 3}, {'x': 3, 'label': 'a'})
    >>> decode(Point, {"x": 3})
    Point(x=3, label='')
    """
    return dataclasses.field(default=default, metadata={_ADDED: True})


def _was_added(field: dataclasses.Field[Any]) -> bool:
    return _ADDED in field.metadata


def _is_union_member(cls: type) -> bool:
    return "__json_union_member__" in vars(cls)


def _widen(kind: Any, value: Any) -> Any:
    """Whole numbers as floats where floats are annotated, so that equal dataclasses have equal bytes."""
    args = typing.get_args(kind)
    if isinstance(value, (list, tuple)) and typing.get_origin(kind) in (list, tuple):
        kinds = args if len(args) == len(value) and Ellipsis not in args else args[:1] * len(value)
        return [_widen(k, v) for k, v in zip(kinds, value, strict=True)]
    is_float = kind is float or (isinstance(kind, types.UnionType) and float in args and int not in args)
    return float(value) if is_float and type(value) is int else value


def _string_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a JSON key must be a string, got {key!r}")
    return key


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            raise _mismatch(where, value, f"one of {', '.join(map(repr, args))}")
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where)
    if origin in (tuple, list):
        return _decode_sequence(origin, args, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, value, "an object")
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    return _decode_scalar(kind, value, where)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    members = [k for k in kinds if k is not type(None)]
    if len(members) == 1:
        return _decode(members[0], value, where)
    by_name = {k.__name__: k for k in members if isinstance(k, type) and _is_union_member(k)}
    name = value["type"] if isinstance(value, dict) and "type" in value else None
    if isinstance(name, str) and name in by_name:
        return _decode(by_name[name], value, where)
    unmarked = [k for k in members if dataclasses.is_dataclass(k) and k not in by_name.values()]
    if len(unmarked) == 1 and isinstance(value, dict) and "type" not in value:
        return _decode(unmarked[0], value, where)
    for scalar in (k for k in members if k in (str, bool, int, float)):
        if type(value) is scalar:
            return value
    raise _mismatch(where, value, f"one of {', '.join(getattr(k, '__name__', str(k)) for k in members)}")


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, value, f"an object ({kind.__name__})")
    given = {k: v for k, v in value.items() if not (k == "type" and _is_union_member(kind))}
    hints = typing.get_type_hints(kind)
    fields = [f for f in dataclasses.fields(kind) if f.init]
    names = [f.name for f in fields]
    unknown = sorted(set(given) - set(names))
    missing = [f.name for f in fields if f.name not in given and not _was_added(f)]
    if unknown or missing:
        what = "; ".join(
            f"{word} {', '.join(found)}" for word, found in (("unknown", unknown), ("missing", missing)) if found
        )
        raise DataError(f"{where}: {what}; {kind.__name__} has the fields {', '.join(names)}")
    return kind(**{name: _decode(hints[name], given[name], f"{where}.{name}") for name in names if name in given})


def _decode_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise _mismatch(where, value, "a list")
    if origin is tuple and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise _mismatch(where, value, f"{len(args)} values")
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    return origin(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise _mismatch(where, value, f"one of {', '.join(repr(m.value) for m in kind)}") from None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _mismatch(where, value, f"a value of type {getattr(kind, '__name__', kind)}")
    return value


def _mismatch(where: str, value: Any, expected: str) -> DataError:
    return DataError(f"{where}: got {value!r}, expected {expected}")
