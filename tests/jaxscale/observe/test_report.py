"""The report as a browser would meet it: parsed, with every reference and every colour looked at."""

import dataclasses
import functools
import html.parser
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.observe.markup import Html, element
from jaxscale.observe.report import Fact, Report, render, write_report
from jaxscale.observe.sections import (
    Check,
    Checks,
    Curve,
    Environment,
    Hit,
    LossCurve,
    Mark,
    MetricsTable,
    Note,
    PlanRow,
    PlanTable,
    Score,
    Search,
    Searches,
    Timings,
)

VOID = {"meta", "wbr"}
MESH = (("data", 2), ("fsdp", 2), ("tensor", 2), ("stage", 1))


class Page(html.parser.HTMLParser):
    """Every element and every piece of text of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.source, self.elements, self.texts, self._open = text, [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def plan(leaf, shape, axes, num_bytes=4096):
    return PlanRow(leaf=leaf, shape=shape, axes=axes, bytes_per_device=num_bytes, reason=f"why {leaf}")


def every_section(user_text="plain"):
    score = Score(value=0.5, low=0.4, high=0.6)
    low = Score(value=0.1, low=0.05, high=0.2)
    rows = (plan(user_text, (16, 8), (("tensor",), ("fsdp",))), plan("scalar", (), ()))
    hits = (Hit(title=user_text, text=user_text, score=1.0, expected=True),)
    return (
        LossCurve(
            title="Training",
            curves=(Curve(name=user_text, steps=(1, 2, 3), values=(3.0, float("nan"), 1.0)),),
            marks=(Mark(step=2, label=user_text),),
            text=user_text,
        ),
        Checks(title="Checks", checks=(Check(name=user_text, passed=True, detail=user_text),), text=user_text),
        PlanTable(title="Plan", mesh=MESH, rows=rows, text=user_text),
        MetricsTable(
            title="Metrics",
            measures=("nDCG@10", user_text),
            systems=((user_text, (score, low)), ("dense", (low, score))),
            caption=user_text,
            text=user_text,
        ),
        Searches(title="Searches", searches=(Search(query=user_text, hits=hits, system=user_text),), text=user_text),
        Timings(title="Timings", phases_s=((user_text, 1.0), ("none", 0.0)), text=user_text),
        Environment(title="Environment", snapshot={"name": user_text, "inner": {"empty": None}}, text=user_text),
        Note(title=user_text, paragraphs=(user_text,), items=(user_text,)),
    )


def report(user_text="plain"):
    facts = (Fact(value=user_text, label=user_text),)
    return Report(title=user_text, summary=user_text, facts=facts, sections=every_section(user_text))


@functools.cache
def page_text(user_text="plain"):
    return render(report(user_text))


def body_of(section):
    return Page(section.body())


def test_the_page_asks_the_network_for_nothing():
    text = page_text()
    page = Page(text)
    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "base"} == set()
    references = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("href", "src", "xlink:href")]
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert "//" not in text.replace("<!DOCTYPE", "")
    assert re.findall(r"url\((?!#)|@import|@font-face", text) == []
    policy = next(attrs for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_references_have_targets_and_ids_are_of_one_thing():
    page = Page(page_text())
    ids = [attrs["id"] for tag, attrs in page.elements if "id" in attrs and tag not in ("path", "clippath")]
    assert len(ids) == len(set(ids))
    targets = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    for _, attrs in page.elements:
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#")[1:] in targets | {""}
        assert attrs.get("aria-labelledby", "") in targets | {""}
        for target in re.findall(r"url\(#([^)]*)\)", attrs.get("clip-path", "")):
            assert target in targets


def test_the_page_can_be_read_without_eyes():
    page = Page(page_text())
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(every_section())
    charts = [attrs for attrs in page.all("svg") if attrs["class"] != "tiles"]
    assert charts
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert all(attrs["aria-hidden"] == "true" for attrs in page.all("svg") if attrs["class"] == "tiles")
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(attrs["scope"] in ("col", "row", "rowgroup") for attrs in page.all("th"))


def test_charts_have_no_colours_of_their_own():
    bodies = "".join(section.body() for section in every_section())
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b", re.sub(r'(href="|id="|url\()#?[^"\)]*', "", bodies)) == []
    assert "var(--series-1)" in bodies
    assert "font-family" not in bodies


def test_every_colour_has_a_dark_and_a_light_form():
    style = re.search(r"<style>(.*?)</style>", page_text(), re.DOTALL).group(1)
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = [set(re.findall(r"(--[\w-]+): #", block)) for block in (light, dark)]
    assert names[0] == names[1]
    used = set(re.findall(r"var\((--[\w-]+)\)", page_text()))
    assert used <= names[0] | {"--serif", "--sans", "--mono"}


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_enough_from_its_ground():
    style = page_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colors = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block))
        for name in ("--ink", "--muted", "--accent", "--warm", "--good", "--bad"):
            for ground in ("--paper", "--raised"):
                low, high = sorted((luminance(colors[name]), luminance(colors[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


HOSTILE = "<script>alert(1)</script> & \"quotes\" 'single' $title ${style} é ☃ $x^2$ </style>"


def test_hostile_text_is_shown_as_it_is_and_adds_no_element():
    harmless = HOSTILE.translate(str.maketrans("<>&\"'${}", "xxxxxxxx"))
    hostile, plain = Page(page_text(HOSTILE)), Page(page_text(harmless))
    assert not hostile.all("script")
    assert len(hostile.all("style")) == 1
    # Within a chart, how far a label is cut may differ.
    inside = ("path", "g", "use", "text", "tspan", "defs")
    tags = [[tag for tag, _ in page.elements if tag not in inside] for page in (hostile, plain)]
    assert tags[0] == tags[1]
    assert HOSTILE in hostile.text


@settings(max_examples=50)
@given(st.text())
def test_an_element_gives_its_text_and_attributes_back(text):
    page = Page(element("p", text, class_="a", data_x=text))
    assert page.elements == [("p", {"class": "a", "data-x": text})]
    assert "".join(page.texts) == text


def test_a_report_is_a_pure_function_of_its_data():
    first = page_text()
    code = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.jaxscale.observe.test_report import report, render; sys.stdout.write(render(report()))"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert again == first


def test_write_report_replaces_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, report())
    assert path.read_text(encoding="utf-8") == page_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_curve_takes_the_rows_that_have_its_metric():
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "dev": 0.5}, {"step": 2, "loss": 1.0}]
    assert Curve.of(rows, "loss") == Curve(name="loss", steps=(1, 2), values=(2.0, 1.0))
    assert Curve.of(rows, "dev", "on dev").name == "on dev"


@pytest.mark.parametrize("curves", [(), (Curve(name="loss", steps=(), values=()),)])
def test_a_run_that_logged_nothing_says_so(curves):
    page = body_of(LossCurve(title="Training", curves=curves))
    assert page.text == "The run logged no values."


def test_a_chart_takes_no_more_curves_than_can_be_told_apart():
    with pytest.raises(ValueError, match="got 4, expected at most 3"):
        LossCurve(title="Training", curves=(Curve(name="loss", steps=(), values=()),) * 4)


def test_a_chart_says_its_curves_and_marks_in_words():
    page = body_of(every_section("loss")[0])
    label = page.all("svg")[0]["aria-label"]
    assert label == "loss: 3 at step 1, 1 at step 3. loss at step 2."


def test_a_long_curve_says_that_it_is_smoothed():
    curve = Curve(name="loss", steps=tuple(range(200)), values=tuple(map(float, range(200))))
    assert "moving mean over 5 rows" in body_of(LossCurve(title="Training", curves=(curve,))).text
    short = dataclasses.replace(curve, steps=curve.steps[:60], values=curve.values[:60])
    assert "moving mean" not in body_of(LossCurve(title="Training", curves=(short,))).text


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (plan("a", (16, 8), (("tensor",), ("fsdp",))), "16tensor × 8fsdp2 copies"),
        (plan("a", (16, 8), (("data", "fsdp"), ("tensor",))), "16datafsdp × 8tensor4 KiB"),
        (plan("a", (16,), ((),)), "16whole on each device"),
        (plan("a", (), ()), "scalarwhole on each device"),
    ],
)
def test_a_plan_row_says_how_its_array_is_cut_and_copied(row, shown):
    page = body_of(PlanTable(title="Plan", mesh=MESH, rows=(row,)))
    assert shown in page.text
    assert "1 arrays on the mesh data 2 × fsdp 2 × tensor 2; 4 KiB on each device" in page.text


@pytest.mark.parametrize(
    ("axes", "tile"),
    [
        (((), (), ()), "M0 0h48v32H0z"),
        ((("data", "fsdp"), (), ("tensor",)), "M0 0h24v8H0z"),
        (((), (), ("tensor",)), "M0 0h24v32H0z"),
        (((), ("tensor",), ()), "M0 0h48v16H0z"),
        ((("tensor",), ("data",), ("fsdp",)), "M0 0h12v16H0z"),
    ],
)
def test_the_tile_filled_is_what_one_device_holds(axes, tile):
    page = body_of(PlanTable(title="Plan", mesh=MESH, rows=(plan("a", (16, 4, 8), axes),)))
    assert next(attrs["d"] for attrs in page.all("path") if attrs["class"] == "held") == tile  # of 48 x 32


def test_a_plan_groups_its_rows_by_their_place_in_the_tree():
    names = ("tower/layers/key/bias", "tower/layers/key/kernel", "tower/layers/out/bias", "temperature")
    page = body_of(PlanTable(title="Plan", mesh=MESH, rows=tuple(plan(name, (2,), ((),)) for name in names)))
    assert len(page.all("tbody")) == 2
    assert [attrs for attrs in page.all("th") if attrs["scope"] == "rowgroup"] == [
        {"scope": "rowgroup", "role": "rowheader", "colspan": "5"}
    ]
    headers = re.findall(r'<th scope="row.*?>(.*?)</th>', page.source)
    assert [re.sub("<[^>]*>", "", header) for header in headers] == [
        "tower/layers/",
        "key/bias",
        "key/kernel",
        "out/bias",
        "temperature",
    ]


def test_a_plan_on_one_device_says_so():
    section = PlanTable(title="Plan", mesh=(("data", 1),), rows=(plan("a", (2,), ((),)),))
    assert "on the mesh one device" in body_of(section).text
    assert "copies" not in section.body()


def test_the_best_of_each_measure_stands_out():
    body = every_section()[3].body()
    assert re.findall(r"<strong>(.*?)</strong>", body) == ["0.500", "0.500"]


def test_a_long_hit_is_cut_at_a_word():
    hit = Hit(title="a", text="word " * 100, score=1.0)
    page = body_of(Searches(title="Searches", searches=(Search(query="q", hits=(hit,)),)))
    assert page.texts[-1].endswith("word …")
    assert len(page.texts[-1]) < 290


def test_a_search_that_found_nothing_says_so():
    page = body_of(Searches(title="Searches", searches=(Search(query="q", hits=()),)))
    assert "Nothing was found." in page.text


def test_timings_add_up():
    section = Timings(title="Timings", phases_s=(("a", 45.0), ("b", 135.0), ("c", 0.1)))
    page = body_of(section)
    assert "3 min 00 s in all" in page.text
    assert [attrs["style"] for attrs in page.all("span") if "style" in attrs] == [
        "width:25.0%",
        "width:75.0%",
        "width:0.1%",
    ]
    assert "under 1%" in page.text


def test_the_environment_leaves_out_what_is_empty():
    section = Environment(title="E", snapshot={"a": 1, "memory_bytes": 2**30, "b": None, "c": {"d": "x", "e": ""}})
    page = body_of(section)
    assert [text for text in page.texts if text.strip()] == ["a", "1", "memory", "1", "GiB", "d", "x"]


def test_markup_is_passed_through_only_as_html():
    assert element("p", Html("<b>x</b>"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"
