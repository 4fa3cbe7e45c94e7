"""Typed JSON: what is encoded is decoded to the same value, and nothing else is decoded at all."""

import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError
from jaxscale.typed_json import canonical, decode, encode, fingerprint, union_member


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@union_member
@dataclasses.dataclass(frozen=True)
class Adam:
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)


@union_member
@dataclasses.dataclass(frozen=True)
class Sgd:
    learning_rate: float
    momentum: float | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    steps: int
    rate: float
    debug: bool
    color: Color
    folder: Path
    kind: Literal["encoder", "decoder", 3]
    tags: tuple[str, ...]
    pairs: list[tuple[int, str]]
    sizes: dict[str, int]
    optimizer: Adam | Sgd
    backup: Adam | Sgd | None
    limit: int | str
    note: str | None
    free: Any
    derived: int = dataclasses.field(init=False, default=7)


finite = st.floats(allow_nan=False, allow_infinity=False)
optimizers = st.builds(Adam, finite, st.tuples(finite, finite)) | st.builds(Sgd, finite, st.none() | finite)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
jobs = st.builds(
    Job,
    name=st.text(),
    steps=st.integers(),
    rate=finite,
    debug=st.booleans(),
    color=st.sampled_from(Color),
    folder=st.text("ab./", min_size=1).map(Path),
    kind=st.sampled_from(["encoder", "decoder", 3]),
    tags=st.lists(st.text(), max_size=3).map(tuple),
    pairs=st.lists(st.tuples(st.integers(), st.text()), max_size=3),
    sizes=st.dictionaries(st.text(), st.integers(), max_size=3),
    optimizer=optimizers,
    backup=st.none() | optimizers,
    limit=st.integers() | st.text(),
    note=st.none() | st.text(),
    free=json_values,
)

A_JOB = Job(
    name="small",
    steps=3,
    rate=0.5,
    debug=True,
    color=Color.BLUE,
    folder=Path("a/b"),
    kind="encoder",
    tags=("x",),
    pairs=[(1, "one")],
    sizes={"a": 1},
    optimizer=Sgd(0.1),
    backup=None,
    limit="none",
    note=None,
    free={"anything": [1]},
)


def test_a_derived_field_is_neither_written_nor_read():
    assert A_JOB.derived == 7
    assert "derived" not in encode(A_JOB)


@settings(max_examples=50)
@given(jobs)
def test_what_is_encoded_is_decoded_to_the_same_value_through_a_file(job):
    assert decode(Job, json.loads(json.dumps(encode(job)))) == job


@settings(max_examples=50)
@given(jobs, jobs)
def test_fingerprints_are_equal_where_values_are_equal(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (canonical(one) == canonical(other))
    assert fingerprint(decode(Job, encode(one))) == fingerprint(one)


@settings(max_examples=50)
@given(json_values)
def test_canonical_is_json_of_the_same_value_and_does_not_depend_on_the_order_of_keys(value):
    def reverse(value):
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return [reverse(item) for item in value] if isinstance(value, list) else value

    try:
        expected = canonical(value)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form
        return
    assert json.loads(expected) == value
    assert canonical(reverse(value)) == expected


def test_canonical_has_one_form_for_a_known_value():
    assert canonical(Sgd(0.1)) == b'{"learning_rate":0.1,"momentum":null,"type":"Sgd"}'
    assert canonical({"é": 1}) == '{"é":1}'.encode()
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_refuses_what_json_does_not_have(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"rate": value})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Sgd, {"inner": [object()]}])
def test_what_is_not_data_is_not_encoded(value):
    with pytest.raises(TypeError, match="has no JSON form"):
        encode(value)


def test_keys_are_strings():
    with pytest.raises(TypeError, match="a JSON key must be a string, got 3"):
        encode({3: "three"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, "Job.steps: got '3', expected a value of type int"),
        ({"steps": 3.0}, "Job.steps: got 3.0, expected a value of type int"),
        ({"steps": True}, "Job.steps: got True, expected a value of type int"),
        ({"steps": None}, "Job.steps: got None, expected a value of type int"),
        ({"rate": "high"}, "Job.rate: got 'high', expected a value of type float"),
        ({"rate": True}, "Job.rate: got True, expected a value of type float"),
        ({"debug": 1}, "Job.debug: got 1, expected a value of type bool"),
        ({"name": 3}, "Job.name: got 3, expected a value of type str"),
        ({"color": "green"}, "Job.color: got 'green', expected one of 'red', 'blue'"),
        ({"folder": 3}, "Job.folder: got 3, expected a value of type Path"),
        ({"kind": "both"}, "Job.kind: got 'both', expected one of 'encoder', 'decoder', 3"),
        ({"tags": "x"}, "Job.tags: got 'x', expected a list"),
        ({"tags": ["x", 3]}, "Job.tags[1]: got 3, expected a value of type str"),
        ({"pairs": [[1, "one", 2]]}, "Job.pairs[0]: got [1, 'one', 2], expected 2 values"),
        ({"pairs": [["one", 1]]}, "Job.pairs[0][0]: got 'one', expected a value of type int"),
        ({"sizes": []}, "Job.sizes: got [], expected an object"),
        ({"sizes": {"a": "b"}}, "Job.sizes.a: got 'b', expected a value of type int"),
        ({"optimizer": []}, "Job.optimizer: got [], expected one of Adam, Sgd"),
        ({"optimizer": {"type": "Lion"}}, "Job.optimizer: got {'type': 'Lion'}, expected one of Adam, Sgd"),
        ({"optimizer": {"learning_rate": 1.0}}, "expected one of Adam, Sgd"),
        ({"optimizer": {"type": "Sgd"}}, "Job.optimizer: missing learning_rate, momentum; Sgd has the fields"),
        ({"backup": {"type": "Sgd", "learning_rate": 1, "momentum": "x"}}, "Job.backup.momentum: got 'x'"),
        ({"limit": 1.5}, "Job.limit: got 1.5, expected one of int, str"),
        ({"note": 3}, "Job.note: got 3, expected a value of type str"),
        ({"extra": 1}, "Job: unknown extra; Job has the fields name, steps"),
        ({"derived": 7}, "Job: unknown derived"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, message):
    with pytest.raises(DataError) as caught:
        decode(Job, encode(A_JOB) | change)
    assert message in str(caught.value)


def test_a_missing_field_is_named_even_where_the_class_has_a_default():
    value = encode(Adam(0.1))
    del value["betas"]
    with pytest.raises(DataError, match="Adam: missing betas; Adam has the fields learning_rate, betas"):
        decode(Adam, value)


def test_every_unknown_and_missing_field_is_named_at_once():
    with pytest.raises(DataError, match="unknown a, b; missing learning_rate, betas"):
        decode(Adam, {"b": 1, "a": 2})


@pytest.mark.parametrize("value", [None, 3, "Job", [], True])
def test_a_dataclass_is_an_object(value):
    with pytest.raises(DataError, match=r"expected an object \(Job\)"):
        decode(Job, value)


def test_the_place_begins_where_the_caller_says():
    with pytest.raises(DataError, match=r"^run/job\.json\.learning_rate: got 'x'"):
        decode(Adam, {"learning_rate": "x", "betas": [1.0, 2.0]}, where="run/job.json")


def test_a_whole_number_is_a_float_where_a_float_is_expected():
    decoded = decode(Adam, {"learning_rate": 1, "betas": [0, 1]})
    assert decoded == Adam(1.0, (0.0, 1.0))
    assert type(decoded.learning_rate) is float


def test_a_whole_number_given_for_a_float_has_the_bytes_of_the_float():
    whole, fractional = Adam(1, (0, 1)), Adam(1.0, (0.0, 1.0))
    assert whole == fractional
    assert canonical(whole) == canonical(fractional) == b'{"betas":[0.0,1.0],"learning_rate":1.0,"type":"Adam"}'
    assert canonical(Sgd(1.0, 1)) == canonical(Sgd(1.0, 1.0))


def test_a_literal_tells_whole_numbers_from_truths():
    @dataclasses.dataclass(frozen=True)
    class Level:
        level: Literal[0, 1]

    assert decode(Level, {"level": 1}) == Level(1)
    for value in (True, 1.0):
        with pytest.raises(DataError, match="expected one of 0, 1"):
            decode(Level, {"level": value})


@pytest.mark.parametrize("value", [[], {}, ["encoder"]])
def test_a_literal_is_not_a_list_or_an_object(value):
    with pytest.raises(DataError, match=r"Job\.kind: got"):
        decode(Job, encode(A_JOB) | {"kind": value})


@pytest.mark.parametrize("value", [[], {}])
def test_an_enum_is_not_a_list_or_an_object(value):
    with pytest.raises(DataError, match=r"Job\.color: got"):
        decode(Job, encode(A_JOB) | {"color": value})


@pytest.mark.parametrize("kind", [[], {}, 3, None])
def test_the_name_of_a_union_member_is_a_string(kind):
    with pytest.raises(DataError, match="expected one of Adam, Sgd"):
        decode(Job, encode(A_JOB) | {"optimizer": {"type": kind, "learning_rate": 1.0, "momentum": None}})


def test_what_a_class_checks_of_itself_is_checked_when_decoding():
    @dataclasses.dataclass(frozen=True)
    class Positive:
        value: int

        def __post_init__(self):
            if self.value <= 0:
                raise ValueError("value must be positive")

    with pytest.raises(ValueError, match="must be positive"):
        decode(Positive, {"value": 0})
