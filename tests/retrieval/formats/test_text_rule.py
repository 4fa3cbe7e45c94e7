"""The text rule: what it changes, what it keeps, what it counts; and which ids are fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError
from retrieval.formats.text_rule import TextCounts, TextRule, check_id


@pytest.mark.parametrize(
    ("texts", "cleaned", "counted"),
    [
        (("plain", "text é 東"), ("plain", "text é 東"), {}),
        (("a\x00b\x00", "c"), ("a\ufffdb\ufffd", "c"), {"num_with_nul": 1}),
        (("", "x\ud83d\x00"), ("", "x\ufffd\ufffd"), {"num_with_nul": 1, "num_with_lone_surrogates": 1}),
        (("", " \n"), ("", " \n"), {"num_empty": 1}),
        (("", ""), ("", ""), {"num_empty": 1}),
        (("title", ""), ("title", ""), {}),
        (("x" * 21, "y" * 20), ("x" * 20, "y" * 20), {"num_cut": 1}),
    ],
)
def test_rule(texts: tuple[str, ...], cleaned: tuple[str, ...], counted: dict[str, int]) -> None:
    counts = TextCounts()
    assert TextRule(max_chars=20).clean(texts, counts) == cleaned
    assert counts == TextCounts(num_records=1, **counted)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(), max_size=30))
def test_what_is_cleaned_can_be_written_and_stays_clean(text: str) -> None:
    (cleaned,) = TextRule().clean((text,), TextCounts())
    cleaned.encode("utf-8")
    counts = TextCounts()
    assert TextRule().clean((cleaned,), counts) == (cleaned,)
    assert counts.num_with_nul == counts.num_with_lone_surrogates == 0
    assert len(cleaned) == len(text)


@pytest.mark.parametrize("value", ["1", "squad-q-56", "<dbpedia:Foo_Bar>", "with space", "é", "\U0001f600"])
def test_fit_ids(value: str) -> None:
    assert check_id(value, "x") == value


@pytest.mark.parametrize("value", ["", " a", "a ", "a\tb", "a\nb", "a\x00", "\ud800", 3, None, 1.5, True])
def test_unfit_ids(value: object) -> None:
    with pytest.raises(DataError, match="corpus:3: _id: got"):
        check_id(value, "corpus:3: _id")
