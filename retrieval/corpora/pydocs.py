"""A retrieval corpus out of the documentation of the installed Python packages.

A passage is what one public function, class or module says of itself: its dotted name (the title), its signature and
its docstring without the first sentence. That sentence is a query whose one relevant passage it was taken from. The
queries of one module stay together, in train, dev or test. A few dozen questions written by hand are a second test set,
`natural`.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxscale.errors import DataError, UsageError
from retrieval.corpora.docstrings import Documented
from retrieval.corpora.public_names import is_private, public_names
from retrieval.corpora.sources import STANDARD_LIBRARY, DistributionSources, is_installed
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.formats.trec import Qrels
from retrieval.records import Doc, Query

DEFAULT_PACKAGES = (
    STANDARD_LIBRARY,
    *("numpy", "jax", "flax", "optax", "scipy", "orbax", "matplotlib"),
    *("absl", "anyio", "click", "etils", "fsspec", "PIL", "psutil", "rich", "treescope", "tyro"),
)
_QUESTIONS_FILE = "pydocs_questions.jsonl"
_NATURAL = "natural"


@dataclass(frozen=True, kw_only=True)
class PydocsConfig:
    """What goes into the corpus.

    Attributes:
      packages: top-level packages, and `stdlib`; those not installed are left out and named in the manifest.
      min_body_chars: a docstring with less than this beyond its first sentence makes no passage.
      min_query_words: a first sentence with fewer words makes no query.
      dev_percent: modules of which the queries go to dev, in percent.
      test_percent: modules of which the queries go to test, in percent.
    """

    packages: tuple[str, ...] = DEFAULT_PACKAGES
    min_body_chars: int = 40
    min_query_words: int = 3
    dev_percent: int = 8
    test_percent: int = 8

    def __post_init__(self) -> None:
        if not (self.dev_percent >= 0 and self.test_percent >= 0 and self.dev_percent + self.test_percent <= 100):
            raise UsageError(
                f"dev_percent={self.dev_percent} and test_percent={self.test_percent} must be at least 0, and at most "
                "100 together"
            )
        if len(set(self.packages)) != len(self.packages) or not self.packages:
            raise UsageError(f"packages={self.packages} must name at least one package, and none twice")


@dataclass(frozen=True, slots=True)
class Passage:
    """A documented thing under its public name; `module` is where it is defined."""

    name: str
    module: str
    documented: Documented

    @property
    def doc(self) -> Doc:
        """The passage as a document; its id is its name."""
        parts = (self.documented.signature, self.documented.body)
        return Doc(self.name, self.name, "\n".join(part for part in parts if part))


@dataclass(frozen=True, kw_only=True)
class Pydocs:
    """The corpus.

    Attributes:
      docs: sorted by id.
      queries: of all splits.
      qrels: split -> query id -> document id -> 1; the splits are train, dev, test and natural.
      left_out: why, and how many: passages, queries and questions.
      sources: package -> version of what was read, `stdlib` among them.
      absent: the packages that are not installed.
    """

    docs: tuple[Doc, ...]
    queries: tuple[Query, ...]
    qrels: dict[str, Qrels]
    left_out: dict[str, int]
    sources: dict[str, str]
    absent: tuple[str, ...]


def build(config: PydocsConfig) -> Pydocs:
    """Reads the installed packages' sources and makes the corpus; the same installation gives the same corpus.

    Raises:
      DataError: none of the packages is installed.
    """
    present = [package for package in config.packages if is_installed(package)]
    if not present:
        raise DataError(f"none of the packages {', '.join(config.packages)} is installed; name one that is")
    left_out: Counter[str] = Counter()
    passages = _distinct((p for package in present for p in _passages(package, left_out)), config, left_out)
    qrels: dict[str, Qrels] = {"train": {}, "dev": {}, "test": {}, _NATURAL: {}}
    queries = []
    for passage in _askable(passages, config, left_out):
        query = Query(f"summary:{passage.name}", passage.documented.summary)
        queries.append(query)
        qrels[split_of(passage.module, config)][query.id] = {passage.name: 1}
    names = {passage.name for passage in passages}
    for number, (question, answers) in enumerate(natural_questions(), 1):
        if found := {name: 1 for name in answers if name in names}:
            queries.append(Query(f"natural:{number:02}", question))
            qrels[_NATURAL][f"natural:{number:02}"] = found
        else:
            left_out["questions_without_passage"] += 1
    return Pydocs(
        docs=tuple(passage.doc for passage in passages),
        queries=tuple(queries),
        qrels={split: judged for split, judged in qrels.items() if judged},
        left_out=dict(sorted(left_out.items())),
        sources=_versions(present),
        absent=tuple(package for package in config.packages if package not in present),
    )


def write(out: Path | str, corpus: Pydocs, config: PydocsConfig, *, replace: bool = False) -> BeirFolder:
    """Writes the corpus as a committed BEIR folder whose manifest says how it was made.

    Args:
      out: the folder to make.
      corpus: what `build` returned.
      config: what it was built with.
      replace: whether a BEIR folder that was committed there is replaced.

    Raises:
      UsageError: something is there already that may not be replaced.
    """
    made = {"pydocs": asdict(config), "sources": corpus.sources, "absent": corpus.absent, "left_out": corpus.left_out}
    return write_beir(out, corpus.docs, corpus.queries, corpus.qrels, config=made, replace=replace)


def split_of(module: str, config: PydocsConfig) -> str:
    """The split that a module's queries go to: a hash of its name, so that no other module's presence moves it.

    >>> split_of("json.decoder", PydocsConfig(dev_percent=0, test_percent=100))
    'test'
    """
    percent = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=8).digest(), "little") % 100
    if percent < config.test_percent:
        return "test"
    return "dev" if percent < config.test_percent + config.dev_percent else "train"


def natural_questions() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the questions written by hand, each with the names of the passages that answer it."""
    text = importlib.resources.files(__package__).joinpath(_QUESTIONS_FILE).read_text(encoding="utf-8")
    for line in text.splitlines():
        record: dict[str, Any] = json.loads(line)
        yield record["question"], tuple(record["answers"])


def _passages(package: str, left_out: Counter[str]) -> Iterator[Passage]:
    """All that the public names of a package document, modules included."""
    modules = DistributionSources(package)
    names = public_names(modules)
    for module_name in sorted({module for module, _ in names} | {m for m in modules if not is_private(m)}):
        for documented in modules[module_name].documented:
            top, _, rest = documented.name.partition(".")
            if not top and not is_private(module_name):
                yield Passage(module_name, module_name, documented)
            elif (module_name, top) in names:
                name = names[module_name, top]
                yield Passage(f"{name}.{rest}" if rest else name, module_name, documented)
            else:
                left_out["passages_without_public_name"] += 1
    left_out["modules_unreadable"] += len(modules.unreadable)


def _distinct(passages: Iterator[Passage], config: PydocsConfig, left_out: Counter[str]) -> list[Passage]:
    """Passages long enough, one for each name and one for each text, sorted by name."""
    by_name: dict[str, Passage] = {}
    for passage in passages:
        if len(passage.documented.body) < config.min_body_chars:
            left_out["passages_too_short"] += 1
        elif passage.name in by_name:
            left_out["passages_of_the_same_name"] += 1
        else:
            by_name[passage.name] = passage
    distinct, seen = [], set()
    for _, passage in sorted(by_name.items()):
        text = (passage.documented.summary, passage.documented.body)
        if text in seen:
            left_out["passages_of_the_same_text"] += 1
        else:
            seen.add(text)
            distinct.append(passage)
    return distinct


def _askable(passages: Sequence[Passage], config: PydocsConfig, left_out: Counter[str]) -> Iterator[Passage]:
    """Passages whose summary makes a query: long enough, and no other passage's summary too."""
    num_same = Counter(passage.documented.summary.casefold() for passage in passages)
    for passage in passages:
        summary = passage.documented.summary
        if len(summary.split()) < config.min_query_words:
            left_out["queries_too_short"] += 1
        elif not summary[0].isalnum():
            left_out["queries_of_markup"] += 1
        elif num_same[summary.casefold()] > 1:
            left_out["queries_not_unique"] += 1
        else:
            yield passage


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """The distribution and its version that each top-level package comes from; of Python for the standard library."""
    distributions = importlib.metadata.packages_distributions()
    found = {p: sorted(set(distributions[p])) if p in distributions else [] for p in packages}
    versions = {p: ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names) for p, names in found.items()}
    return {p: f"Python {platform.python_version()}" if p == STANDARD_LIBRARY else versions[p] for p in packages}
