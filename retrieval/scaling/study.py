"""Runs a scaling study: every member of a family trained and measured, the laws fitted, the results committed.

The written format is docs/formats/scaling-study.md. The same call goes on where a kill cut it off, to the same results.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxscale import typed_json
from jaxscale.mesh import mesh_from_text, spec_of
from jaxscale.observe.report import write_report
from jaxscale.store import commit, disk
from jaxscale.store.failpoints import failpoint
from jaxscale.train.loop import train
from jaxscale.train.signals import StopSignals
from retrieval.formats.beir import BeirFolder
from retrieval.scaling.contrastive_entropy import EntropySet, make_entropy_set
from retrieval.scaling.family import FamilyRun, Size, TowerFamily
from retrieval.scaling.inputs import claim_study, make_starts
from retrieval.scaling.laws import Laws, Point, fit_laws, points_to_lines
from retrieval.scaling.page import drawings, study_report
from retrieval.towers.loading import load_towers
from retrieval.towers.pairs import read_source

FORMAT, VERSION = "jaxscale.scaling-study", 1
RESULTS = "results"  # of a study's folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Study:
    """A study that is ready to run.

    Attributes:
      family: what is studied.
      out: its folder.
      mesh: where its runs are.
      pairs: the amounts of data.
      identity: of the study.
      starts: the weights of each size.
      entropy_set: what all models are measured on.
    """

    family: TowerFamily
    out: Path
    mesh: Mesh
    pairs: BeirFolder
    identity: dict[str, Any]
    starts: dict[Size, Path]
    entropy_set: EntropySet


def run_study(family: TowerFamily, out: Path) -> tuple[list[Point], Laws]:
    """Trains what is not trained yet, measures all, fits the laws and commits the results.

    Args:
      family: what is studied.
      out: the study's folder; made where there is none.

    Returns:
      The points in the order of the family's runs, and their laws.

    Raises:
      UsageError: the family does not fit the mesh, or the folder belongs to something else.
      DataError: the data are malformed or too few.
      Preempted, Interrupted: the process was asked to stop; the same call goes on.
      DivergedError: a run diverged.
      MachineError: the folder is in use, or the disk is full.
    """
    with StopSignals() as stop:
        return _run(family, out, stop)


def _run(family: TowerFamily, out: Path, stop: StopSignals) -> tuple[list[Point], Laws]:
    with stop.hold(_nothing_to_save):
        study = _prepare(family, out)
    if study is None:
        print(f"{out / RESULTS}: this study is finished; nothing to do", file=sys.stderr)
        return read_results(out / RESULTS)
    points = []
    for number, run in enumerate(family.runs, 1):
        if stop.requested:
            raise stop.error(_nothing_to_save())
        points.append(_point(study, run, stop))
        failpoint("scaling.run_measured")
        progress = f"{number}/{len(family.runs)} {run}: contrastive entropy {points[-1].contrastive_entropy:.4f}"
        print(f"scaling: run {progress}", file=sys.stderr, flush=True)
    laws = fit_laws(points)
    _write_results(study, points, laws)
    return points, laws


def _prepare(family: TowerFamily, out: Path) -> _Study | None:
    """Checks everything, claims the folder and makes what the runs begin with; None where the study is finished."""
    mesh = mesh_from_text(family.job.operation.mesh)
    family.check(spec_of(mesh))
    data = family.job.data
    source = read_source(Path(data.folder), data.split, data.dev_split)
    entropy_set = make_entropy_set(
        source,
        num_queries=family.num_queries,
        num_negatives=family.num_negatives,
        num_pool_documents=family.num_pool_documents,
    )
    disk.check_directory_above(out)
    pairs, identity = claim_study(out, family, source)
    if commit.is_committed(out / RESULTS):
        return None
    return _Study(
        family=family,
        out=out,
        mesh=mesh,
        pairs=pairs,
        identity=identity,
        starts=make_starts(out, family),
        entropy_set=entropy_set,
    )


def _nothing_to_save() -> str:
    return "runs that have finished are kept"


def read_results(path: Path) -> tuple[list[Point], Laws]:
    """Reads the results of a study.

    Args:
      path: the folder `results` of a study.

    Raises:
      DataError: there are none, or something else is there.
      VerificationError: they are damaged; the message names the file.
    """
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check="full")
    lines = (committed.path / "points.jsonl").read_text(encoding="utf-8").splitlines()
    points = [typed_json.decode(Point, json.loads(line), "points.jsonl") for line in lines]
    laws = json.loads((committed.path / "laws.json").read_text(encoding="utf-8"))
    return points, typed_json.decode(Laws, laws, "laws.json")


def _point(study: _Study, run: FamilyRun, stop: StopSignals) -> Point:
    """Trains a run to its end, where it is not there yet, and measures its model."""
    family = study.family
    with stop.hold(_nothing_to_save):
        job = family.job_of(run, study.pairs.path, study.starts[run.size])
        objective = job.objective()
    result = train(objective, job.training, job.operation, study.out / "runs" / str(run), stop=stop)
    with stop.hold(_nothing_to_save):
        entropy = study.entropy_set.measure(
            load_towers(Path(result.model)),
            study.mesh,
            temperature=job.contrastive.temperature,
            compute_dtype=job.training.compute_dtype,
        )
    return Point(
        size=str(run.size),
        num_layers=run.size.num_layers,
        width=run.size.width,
        num_params=family.num_params(run.size),
        num_pairs=run.num_pairs,
        num_steps=job.training.num_steps,
        contrastive_entropy=entropy,
        state_hash=result.state_hash,
    )


def _write_results(study: _Study, points: Sequence[Point], laws: Laws) -> None:
    with commit.draft(study.out / RESULTS, format=FORMAT, version=VERSION) as draft:
        (draft.path / "points.jsonl").write_text(points_to_lines(points), encoding="utf-8")
        (draft.path / "laws.json").write_text(typed_json.pretty(laws), encoding="utf-8")
        write_report(draft.path / "report.html", study_report(points, laws))
        for size, drawn in drawings(points, laws).items():
            (draft.path / f"{size}.svg").write_text(drawn, encoding="utf-8")
        draft.counts["points"] = len(points)
        draft.parents["data"] = commit.open_committed(study.pairs.path).manifest.identity
        draft.config = study.identity
