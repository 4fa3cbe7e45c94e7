"""`jaxscale benchmark`: a retriever on several BEIR folders, beside BM25 and both fused, or against another one."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.store import commit
from retrieval.benchmark.page import NAMES, weight_words
from retrieval.benchmark.run import RESULTS, Contender, run_benchmark
from retrieval.benchmark.searches import SearchOptions
from retrieval.benchmark.table import BEFORE, Benchmark, Difference, Figures
from retrieval.evaluate import DEFAULT_MEASURES
from retrieval.towers.loading import EncoderOverrides, load_towers

_CELL, _NAME = 25, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Searches every folder exactly by the retriever's vectors, by BM25 and by both, and measures all of it.

    Prints means over queries with 95 % bootstrap intervals, the mean over folders, and p values of paired randomisation
    tests: dense against BM25, the hybrid against the better of both, and with --against each of them against what it
    was. OUT/runs holds the TREC runs, OUT/results the figures and a page. The same command again goes on: a folder that
    was searched is not searched again.

    Example: jaxscale benchmark --model runs/tuned --data nq fiqa scifact --out bench --against all-MiniLM-L6-v2

    Attributes:
      model: a retriever, a model, a training run, or a Hugging Face folder of an encoder or a decoder.
      data: BEIR folders.
      out: the benchmark's folder.
      against: another retriever, or the folder of an earlier benchmark of the same data.
      measures: nDCG@k, RR@k, R@k, P@k, MAP@k; the first one is charted.
      keep_parts: leave the vectors and BM25 indexes in OUT/parts; a later call that searches a folder without this flag
        removes the folder's.
      mesh: devices that share every batch and the search, e.g. data=8; all of them when empty.
      encoder: how to use the model otherwise than its own settings say.
      against_encoder: the same of the other retriever.
      search: splits, weight, depth and dtype.
    """

    model: Path
    data: tuple[Path, ...]
    out: Path
    against: Path | None = None
    measures: tuple[str, ...] = DEFAULT_MEASURES
    keep_parts: bool = False
    mesh: str = ""
    encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    against_encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=SearchOptions)

    def run(self) -> dict[str, Any]:
        """Runs the benchmark, prints its tables and returns its figures."""
        mesh = mesh_from_text(self.mesh)
        benchmark = run_benchmark(
            Contender(name=str(self.model), towers=load_towers(self.model, overrides=self.encoder)),
            self.data,
            self.out,
            mesh,
            options=self.search,
            measures=self.measures,
            against=self._against(),
            keep_parts=self.keep_parts,
        )
        for folder in benchmark.folders:
            _print(f"{folder.name}: {weight_words(folder, benchmark.split)}", folder.figures, benchmark)
        if benchmark.mean is not None:
            _print(f"mean over {len(benchmark.folders)} folders, each weighing the same", benchmark.mean, benchmark)
        print(f"results: {self.out / RESULTS / 'report.html'}")
        report: dict[str, Any] = typed_json.encode(benchmark)
        return {"out": str(self.out), **report}

    def _against(self) -> Contender | Path | None:
        """The other retriever, or the folder of an earlier benchmark."""
        if self.against is None:
            return None
        if commit.is_committed(self.against / RESULTS):
            if self.against.resolve() == self.out.resolve():
                raise UsageError(f"against={self.against} is the folder of this benchmark; name that of an earlier one")
            return self.against
        return Contender(name=str(self.against), towers=load_towers(self.against, overrides=self.against_encoder))


def _print(title: str, figures: Figures, benchmark: Benchmark) -> None:
    print(f"\n{title}")
    print(" " * _NAME + "".join(f"{measure:>{_CELL}}" for measure in benchmark.measures))
    for name, values in figures.systems.items():
        cells = [f"{i.mean:.3f} ({i.low:.3f} to {i.high:.3f})" for i in (values[m] for m in benchmark.measures)]
        print(f"{NAMES[name]:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells))
    for number in range(len(figures.differences) // len(benchmark.measures)):
        row = figures.differences[number :: len(figures.differences) // len(benchmark.measures)]
        print(f"{_row_name(row[0]):<{_NAME}}" + "".join(f"{_cell(found):>{_CELL}}" for found in row))


def _row_name(found: Difference) -> str:
    if found.against.endswith(BEFORE):
        return f"{NAMES[found.system]} - before"
    return "dense - BM25" if found.system == "dense" else "hybrid - the better"


def _cell(found: Difference) -> str:
    whose = f" {NAMES[found.against]}" if found.system == "hybrid" and not found.against.endswith(BEFORE) else ""
    return f"{found.difference.mean:+.3f} p={found.p:.4f}{whose}"
