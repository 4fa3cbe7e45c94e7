"""`jaxscale distill study`: students of several depths, what each keeps of the teacher, and how fast it is."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text, spec_of
from launch.distill_study_page import write_study
from launch.verbs import distill
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels, Run
from retrieval.records import Query
from retrieval.retriever import Retriever, Sources
from retrieval.search.queries import read_queries
from retrieval.towers.distillation.job import DistillationJob
from retrieval.towers.distillation.student import start_student
from retrieval.towers.distillation.study import (
    DEPTH,
    MANY,
    Study,
    TowerFigures,
    check_many,
    count_params,
    kept_of,
    speeds_of,
)
from retrieval.towers.distillation.teacher import open_documents, open_teacher
from retrieval.towers.loading import load_towers

_TEACHER = "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Distils a student for each depth, then compares all of them with the teacher on a test split, and their speed.

    Each student is a run in OUT/layers-N. The same command again goes on: what has finished is not trained again.
    Writes study.md and study.svg in OUT; the figures are in --json too.

    Example: jaxscale distill study distill_query_tower --teacher.retriever runs/large --teacher.index index
      --data.folder beir --layers 3 2 1 --out study

    Attributes:
      out: the folder of the students' runs and the study.
      layers: the students: so many of the teacher's layers.
      test_split: whose queries they are compared on.
      num_timed: of these queries, by how many speed is measured.
      compute_dtype: of the encoders' products in the comparison.
      mesh: where they train and encode; empty for what the recipe says, else all devices on data.
      job: the recipe's job.
    """

    out: Path
    layers: tuple[int, ...] = (3, 2, 1)
    test_split: str = "test"
    num_timed: int = 256
    compute_dtype: ComputeDtype = "float32"
    mesh: str = ""
    job: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = None

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise UsageError(f"layers={self.layers} must name at least one depth, none twice")
        if self.num_timed < MANY:
            raise UsageError(f"num_timed={self.num_timed} must be at least {MANY}, which are encoded at once")

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages.
          job: what it returns.

        Raises:
          UsageError: the recipe distils nothing.
        """
        distill.require_distillation(name, job)
        return cls(out=tyro.MISSING, job=job)

    def run(self) -> dict[str, Any]:
        """Trains what is not trained yet, measures, writes the study and returns it."""
        jobs = {f"layers-{number}": self._job(number) for number in self.layers}
        queries, qrels, found_by_teacher = self._check(list(jobs.values()))
        for name, job in jobs.items():
            distill.Command(out=self.out / name, mesh=self.mesh, job=job).run()
        study = self._study([*jobs], queries, qrels, found_by_teacher)
        write_study(self.out, study)
        for tower in study.towers:
            found = "  ".join(f"{measure} {kept.value:.4f} ({kept.share:.1%})" for measure, kept in tower.kept.items())
            print(f"{tower.name}: {found}  p50 {tower.speed.p50_ms:.2f} ms, {tower.speed.queries_per_s:,.0f} queries/s")
        print(f"study: {self.out / 'study.md'}")
        report: dict[str, Any] = typed_json.encode(study)
        return {"out": str(self.out), **report}

    def _job(self, num_layers: int) -> DistillationJob:
        """The recipe's with a student of so many layers; one set of the teacher's vectors serves all."""
        job: DistillationJob = self.job
        teacher = job.teacher
        if not teacher.query_vectors:
            teacher = dataclasses.replace(teacher, query_vectors=str(self.out / "teacher-queries"))
        student = dataclasses.replace(job.student, num_layers=num_layers)
        return dataclasses.replace(job, teacher=teacher, student=student)

    def _check(self, jobs: list[DistillationJob]) -> tuple[list[Query], Qrels, Run]:
        """Refuses what would only be met after hours of training.

        Returns:
          The test queries, their judgements, and what the teacher finds.
        """
        mesh = spec_of(mesh_from_text(self.mesh or self.job.operation.mesh))
        for job in jobs:
            job.check(mesh)
        if not (self.job.teacher.vectors or self.job.teacher.index):
            raise UsageError("a study searches frozen documents; add `--teacher.index DIR` or `--teacher.vectors DIR`")
        towers = open_teacher(self.job.teacher)
        open_documents(self.job.teacher, towers)
        for job in jobs:
            start_student(job.student, towers, job.data.max_length, job.training.seed)
        folder = Path(self.job.data.folder)
        qrels = BeirFolder.open(folder, check="full").qrels(self.test_split)
        queries = read_queries(folder, self.test_split)
        check_many(queries)
        found = self._found_by(Path(self.job.teacher.retriever), queries)
        kept_of({_TEACHER: found}, qrels, _TEACHER)
        return queries, qrels, found

    @property
    def _searched(self) -> str:
        return "index" if self.job.teacher.index else "vectors"

    def _found_by(self, model: Path, queries: list[Query]) -> Run:
        """What the query tower of a model finds among the frozen documents."""
        sources = Sources(model=model, **{self._searched: Path(getattr(self.job.teacher, self._searched))})
        mesh = mesh_from_text(self.mesh or self.job.operation.mesh)
        return Retriever.load(sources, mesh=mesh, compute_dtype=self.compute_dtype).run(queries, DEPTH)

    def _study(self, students: list[str], queries: list[Query], qrels: Qrels, found_by_teacher: Run) -> Study:
        mesh = mesh_from_text(self.mesh or self.job.operation.mesh)
        models = {name: self.out / name for name in students}
        runs = {_TEACHER: found_by_teacher} | {name: self._found_by(model, queries) for name, model in models.items()}
        kept = kept_of(runs, qrels, _TEACHER)
        models = {_TEACHER: Path(self.job.teacher.retriever)} | models
        encoders = {name: load_towers(model).query for name, model in models.items()}
        timed = [query.text for query in queries[: self.num_timed]]
        speeds = speeds_of(encoders, timed, mesh, compute_dtype=self.compute_dtype)
        counts = {name: count_params(encoder.params) for name, encoder in encoders.items()}
        towers = tuple(
            TowerFigures(
                name=name,
                num_layers=encoder.config.transformer.num_layers,
                num_params=counts[name][0],
                num_params_in_layers=counts[name][1],
                kept=kept[name],
                speed=speeds[name],
            )
            for name, encoder in encoders.items()
        )
        return Study(
            towers=towers,
            num_queries=len(queries),
            num_timed=len(timed),
            split=self.test_split,
            searched=self._searched,
            compute_dtype=self.compute_dtype,
            mesh=str(spec_of(mesh)),
        )
