"""The sections of a comparison as a browser would meet them: what they show, how they open, and hostile text."""

import re

import pytest

from jaxscale.observe.comparison_sections import (
    Change,
    Changes,
    ComparedQueries,
    ComparedQuery,
    Differences,
    FoundBy,
    FoundPassage,
    RelevantPassage,
    styles,
)
from jaxscale.observe.report import Report, render
from jaxscale.observe.sections import Score
from tests.jaxscale.observe.test_report import HOSTILE, Page


def query(text="plain", first=0.25, second=1.0):
    passage = FoundPassage(rank=1, doc_id=text, title=text, text=text, relevant=True)
    other = FoundPassage(rank=2, doc_id="d2", title="", text="second text", relevant=False)
    return ComparedQuery(
        query_id="q1",
        text=text,
        found=(
            FoundBy(system="bm25", value=first, passages=(passage, other)),
            FoundBy(system="dense", value=second, passages=(), note="nothing here"),
        ),
        relevant=(RelevantPassage(doc_id=text, title=text, ranks=(1, None)),),
    )


def change(name="cranfield", value=0.1):
    score = Score(value=value, low=value - 0.05, high=value + 0.05)
    return Change(name=name, before=0.3, after=0.3 + value, difference=score, p=0.0123)


def report(text="plain"):
    return Report(
        title=text,
        summary=text,
        sections=(
            Changes(title=text, groups=((text, (change(text),)), ("RR", (change(text),))), caption=text, text=text),
            Differences(title=text, values=(0.5, 0.0, -0.5), y_label=text, caption=text, text=text),
            ComparedQueries(title=text, queries=(query(text), query(text, 1.0, 0.5)), num_open=1, text=text),
        ),
        styles=styles(),
    )


def test_a_query_shows_both_lists_and_where_the_relevant_ones_stand():
    page = Page(ComparedQueries(title="t", queries=(query(),)).body())
    assert "+0.750 plain 0.250 → 1.000" in page.text.replace("plain0.250", "plain 0.250").replace("0plain", "0 plain")
    assert "bm25: rank 1" in page.text
    assert "dense: not found" in page.text
    assert "nothing here" in page.text
    assert "second text" in page.text
    assert [attrs.get("class") for attrs in page.all("li")][1:] == ["held", None]


def test_the_first_queries_are_open_and_all_can_be_opened():
    page = Page(ComparedQueries(title="t", queries=(query(), query(), query()), num_open=1).body())
    assert ["open" in attrs for attrs in page.all("details")] == [True, False, False]
    assert len(page.all("summary")) == 3


@pytest.mark.parametrize(("second", "kind"), [(1.0, "good"), (0.0, "bad"), (0.25, "same")])
def test_a_difference_has_its_sign_beside_its_colour(second, kind):
    body = ComparedQueries(title="t", queries=(query(second=second),)).body()
    assert f'<span class="difference {kind}">{second - 0.25:+.3f}</span>' in body


def test_no_queries_are_said_to_be_none():
    assert "There are none." in ComparedQueries(title="t", queries=()).body()


def test_changes_are_charted_for_the_first_group_and_listed_for_all():
    page = Page(
        Changes(title="t", groups=(("nDCG@10", (change(),)), ("RR@10", (change(value=-0.2),))), caption="c").body()
    )
    assert "nDCG@10" in page.all("svg")[0]["aria-label"]
    assert "+0.100, from +0.050 to +0.150" in page.all("svg")[0]["aria-label"]
    for shown in ("+0.100", "0.400", "0.0123", "-0.200", "-0.250 to -0.150"):
        assert shown in page.text


def test_hostile_text_is_shown_as_it_is_and_adds_no_element():
    harmless = HOSTILE.translate(str.maketrans("<>&\"'${}", "xxxxxxxx"))
    hostile, plain = (Page(render(report(text))) for text in (HOSTILE, harmless))
    inside = ("path", "g", "use", "text", "tspan", "defs")
    tags = [[tag for tag, _ in page.elements if tag not in inside] for page in (hostile, plain)]
    assert tags[0] == tags[1]
    assert not hostile.all("script")
    assert HOSTILE in hostile.text


def test_the_style_sheet_uses_the_pages_colours_and_fetches_nothing():
    (sheet,) = styles()
    page = render(report())
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|url\(|@import", sheet) == []
    assert set(re.findall(r"var\((--[\w-]+)\)", sheet)) <= set(re.findall(r"(--[\w-]+):", page))
    assert "//" not in page.replace("<!DOCTYPE", "")
