"""The documentation corpus: what a passage holds, how queries are split, that nothing is left to chance."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.store import commit
from retrieval.corpora.pydocs import DEFAULT_PACKAGES, Pydocs, PydocsConfig, build, natural_questions, split_of, write
from retrieval.formats.beir import BeirFolder
from retrieval.records import Doc, Query

GOLDEN_SPLITS = ["test", "train", "train"]
BODY = "A body that says more than forty characters about it."
FILES = {
    "__init__.py": f'"""The fake package for tests.\n\n{BODY} Really."""\nfrom ._impl import solve\n',
    "_impl.py": f'''
def solve(a, b=1):
    """Solve the puzzle quickly. {BODY}"""
def internal():
    """Never seen by a user. {BODY}"""
''',
    "shapes.py": f'''
class Circle:
    """A round thing indeed. {BODY} Round."""
    def __init__(self, radius): pass
    def area(self):
        """Return the size. {BODY} Area."""
    def copy_of_area(self):
        """Return the size. {BODY} Area."""
    def short(self):
        """Too short to be a passage."""
class Square:
    """A thing. {BODY} Square."""
    def area(self):
        """Return the size. {BODY} Square area."""
    def markup(self):
        """:param x: what it is\n\n{BODY} Markup."""
''',
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PydocsConfig:
    package = tmp_path / "site" / "fakedocs"
    package.mkdir(parents=True)
    for name, content in FILES.items():
        (package / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return PydocsConfig(packages=("fakedocs", "not_there_at_all"))


def test_passages_and_queries(fake: PydocsConfig) -> None:
    corpus = build(fake)
    assert list(corpus.docs) == [
        Doc("fakedocs", "fakedocs", f"{BODY} Really."),
        Doc("fakedocs.shapes.Circle", "fakedocs.shapes.Circle", f"Circle(self, radius)\n{BODY} Round."),
        Doc("fakedocs.shapes.Circle.area", "fakedocs.shapes.Circle.area", f"area(self)\n{BODY} Area."),
        Doc("fakedocs.shapes.Square", "fakedocs.shapes.Square", f"Square\n{BODY} Square."),
        Doc("fakedocs.shapes.Square.area", "fakedocs.shapes.Square.area", f"area(self)\n{BODY} Square area."),
        Doc("fakedocs.shapes.Square.markup", "fakedocs.shapes.Square.markup", f"markup(self)\n{BODY} Markup."),
        Doc("fakedocs.solve", "fakedocs.solve", f"solve(a, b=1)\n{BODY}"),
    ]
    assert list(corpus.queries) == [
        Query("summary:fakedocs", "The fake package for tests."),
        Query("summary:fakedocs.shapes.Circle", "A round thing indeed."),
        Query("summary:fakedocs.solve", "Solve the puzzle quickly."),
    ]
    judged = {query_id: docs for split in corpus.qrels.values() for query_id, docs in split.items()}
    assert judged == {query.id: {query.id.removeprefix("summary:"): 1} for query in corpus.queries}


def test_what_is_left_out_is_counted(fake: PydocsConfig) -> None:
    corpus = build(fake)
    assert corpus.left_out == {
        "modules_unreadable": 0,
        "passages_of_the_same_text": 1,
        "passages_too_short": 1,
        "passages_without_public_name": 1,
        "queries_not_unique": 2,
        "queries_of_markup": 1,
        "queries_too_short": 1,
        "questions_without_passage": 40,
    }
    assert corpus.absent == ("not_there_at_all",)
    assert list(corpus.sources) == ["fakedocs"]


def test_queries_of_a_module_stay_together_and_splits_have_their_share() -> None:
    config = PydocsConfig(dev_percent=10, test_percent=20)
    splits = [split_of(f"package.module{i}", config) for i in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("dev") / 4000 == pytest.approx(0.1, abs=0.02)
    assert [split_of(name, PydocsConfig()) for name in ("json", "numpy._core.numeric", "jax._src.api")] == GOLDEN_SPLITS


@pytest.fixture(scope="module")
def real() -> Pydocs:
    """The packages in which the natural questions have their answers."""
    return build(PydocsConfig(packages=("stdlib", "numpy", "jax", "optax")))


def test_the_real_thing(real: Pydocs) -> None:
    assert len(real.docs) > 4000
    assert len({doc.id for doc in real.docs}) == len(real.docs)
    assert len({query.id for query in real.queries}) == len(real.queries)
    ids = {doc.id for doc in real.docs}
    assert {"json.dumps", "textwrap.dedent", "numpy.argsort", "numpy.zeros", "jax.numpy.argsort", "optax.adamw"} <= ids
    assert not [i for i in ids if "._" in i]
    assert real.left_out["modules_unreadable"] == 0
    texts = {doc.id: doc.text for doc in real.docs}
    assert texts["textwrap.dedent"].startswith("dedent(text)\n")
    queries = {query.id: query.text for query in real.queries}
    assert queries["summary:textwrap.dedent"] == "Remove any common leading whitespace from every line in `text`."
    assert queries["summary:textwrap.dedent"] not in texts["textwrap.dedent"]


def test_every_natural_question_is_answered(real: Pydocs) -> None:
    questions = list(natural_questions())
    assert 30 <= len(questions) == len({question for question, _ in questions})
    assert len(real.qrels["natural"]) == len(questions)
    assert "questions_without_passage" not in real.left_out


def test_writes_a_committed_folder_that_says_how_it_was_made(fake: PydocsConfig, tmp_path: Path) -> None:
    corpus = build(fake)
    folder = write(tmp_path / "out", corpus, fake)
    assert list(folder.docs()) == list(corpus.docs)
    assert list(folder.queries()) == list(corpus.queries)
    assert {split: folder.qrels(split) for split in folder.splits} == corpus.qrels
    made = commit.open_committed(tmp_path / "out", check="full").manifest.config
    assert made["absent"] == ["not_there_at_all"]
    assert made["pydocs"]["min_body_chars"] == fake.min_body_chars
    assert made["left_out"] == corpus.left_out


def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    config = PydocsConfig(packages=("optax",))
    here = write(tmp_path / "here", build(config), config)
    program = (
        "import sys; from retrieval.corpora.pydocs import *\n"
        "config = PydocsConfig(packages=('optax',)); write(sys.argv[1], build(config), config)\n"
        "assert not {'optax', 'jax', 'flax'} & set(sys.modules), 'a package was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], check=True)
    assert BeirFolder.open(tmp_path / "there").identity == here.identity


@pytest.mark.slow
def test_the_whole_corpus_has_the_size_the_demo_counts_on() -> None:
    corpus = build(PydocsConfig())
    assert set(DEFAULT_PACKAGES) == {*corpus.sources, *corpus.absent}
    assert 9_000 <= len(corpus.docs) <= 13_000
    assert 400 <= len(corpus.qrels["dev"]) <= 1000
    assert 400 <= len(corpus.qrels["test"]) <= 1000


@pytest.mark.parametrize(
    "fields", [{"dev_percent": -1}, {"dev_percent": 60, "test_percent": 60}, {"packages": ()}, {"packages": ("a", "a")}]
)
def test_refuses_configs(fields: dict) -> None:
    with pytest.raises(UsageError):
        PydocsConfig(**fields)


def test_refuses_a_corpus_of_nothing() -> None:
    with pytest.raises(DataError, match="none of the packages nope_a, nope_b is installed"):
        build(PydocsConfig(packages=("nope_a", "nope_b")))
