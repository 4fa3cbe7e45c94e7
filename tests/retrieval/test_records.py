"""The records: what of a document is embedded."""

import dataclasses

import pytest

from retrieval.records import Doc, Query


@pytest.mark.parametrize(
    ("doc", "passage"),
    [(Doc("1", "T", "x y"), "T x y"), (Doc("1", "", "x"), "x"), (Doc("1", "T", ""), "T "), (Doc("1", "", ""), "")],
)
def test_passage_is_title_and_text(doc: Doc, passage: str) -> None:
    assert doc.passage == passage


@pytest.mark.parametrize("record", [Query("q", "x"), Doc("d", "", "")])
def test_records_are_frozen_values(record: object) -> None:
    assert record == dataclasses.replace(record)  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")  # type: ignore[arg-type]
