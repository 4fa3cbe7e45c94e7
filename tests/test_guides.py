"""The guides kept true: what a reader is told to run runs, rules are those there are, pictures what the code draws."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from jaxscale.sharding.rules import RULES
from launch import cli

GUIDES = Path(__file__).resolve().parents[1] / "docs" / "guides"
# A block of commands names the exit code that it ends with, a block of Python the file that a reader puts it in.
BLOCK = re.compile(r"^```(sh|text|python)(?: exit=(\d+)| file=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
RULE_HEADING = re.compile(r"^## (\d+)\. .*`(\w+)`$", re.MULTILINE)


def pictures_program() -> Any:
    spec = importlib.util.spec_from_file_location("draw_pictures", GUIDES / "draw_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pictures_program().draw_all(folder)
    return folder


def test_the_page_has_the_rules_of_the_code_in_the_codes_order() -> None:
    found = RULE_HEADING.findall((GUIDES / "sharding-rules.md").read_text())
    assert [name for _, name in found] == [rule.__name__ for rule in RULES]
    assert [number for number, _ in found] == [str(number) for number in range(1, len(RULES) + 1)]


def test_every_rule_has_its_picture_on_the_page() -> None:
    parts = RULE_HEADING.split((GUIDES / "sharding-rules.md").read_text())
    for name, text in zip(parts[2::3], parts[3::3], strict=True):
        assert f"](pictures/{name}.svg)" in text, name


def test_the_pictures_are_what_the_code_draws(drawn: Path) -> None:
    kept = {path.name: path.read_text() for path in (GUIDES / "pictures").glob("*.svg")}
    assert kept == {path.name: path.read_text() for path in drawn.glob("*.svg")}, (
        "the pictures are old; run `python docs/guides/draw_pictures.py`"
    )


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES])
def test_a_rules_picture_shows_what_the_rule_does(drawn: Path, rule: str) -> None:
    """In the words that stand for the picture: what is cut over which axis, and what is whole."""
    shown = {
        "layers_stay_whole": "array 4 whole by 64 over fsdp 2 by 64 whole",
        "experts": "router: array 64 whole by 8 whole and experts, up: array 8 over expert 4 by 64 whole by 128 whole",
        "columns_then_rows": "64 whole by 256 over tensor 4 then down: rows: array 256 over tensor 4 by 64 whole",
        "fused_projection": "64 whole by 192 over tensor 2 and its columns: stored: 3 parts of 64, 64, 64",
        "vocabulary": "array 512 over tensor 4 by 64 whole and output: array 64 whole by 512 over tensor 4",
        "fully_shard": "256 over fsdp 4 and on fsdp=4,tensor=2: array 64 over fsdp 4 by 256 over tensor 2",
        "follow_the_parameter": "Adafactor's rows: array 128 over fsdp 2 and and columns: array 256 over tensor 2",
        "split_the_batch": "array 8 over data 2 and fsdp 2 by 64 whole",
        "split_the_sequence": "array 4 over data 2 by 4096 over sequence 4 by 64 whole",
    }
    words = ET.parse(drawn / f"{rule}.svg").getroot().get("aria-label")
    assert shown[rule] in words


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.name)
def test_what_a_guide_links_to_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link


def words_of(line: str) -> str:
    """A line with single spaces, as a table's columns move with what stands in them."""
    return " ".join(line.split())


def run_line(line: str, code: int) -> str:
    """What a command prints; it has to end with `code`."""
    program, *words = shlex.split(line)
    assert program == "jaxscale", line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        got = cli.main(words)
    assert got == code, f"`{line}` ended with {got}:\n{printed.getvalue()}"
    return printed.getvalue()


@pytest.mark.slow
def test_what_the_guide_shows_runs_in_order_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed, script, kinds = "", [], []
    for kind, code, file, text in BLOCK.findall((GUIDES / "sharding.md").read_text()):
        kinds.append(kind)
        if kind == "sh":
            printed = "".join(run_line(line, int(code or 0)) for line in text.splitlines())
        elif kind == "text":
            seen = words_of(printed)
            missing = [line for line in text.splitlines() if words_of(line) not in seen]
            assert not missing, f"{missing} not in:\n{printed}"
        elif file:
            Path(file).write_text(text)
        else:
            script.append(text)
    assert (kinds.count("sh"), kinds.count("text"), kinds.count("python")) == (8, 3, 5)
    assert "<svg" in Path("plan.html").read_text()
    done = subprocess.run([sys.executable, "-c", "".join(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the guide's Python ended with {done.returncode}:\n{done.stderr}"
    assert "not understood: nothing" in done.stdout
