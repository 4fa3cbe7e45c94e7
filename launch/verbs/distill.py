"""`jaxscale distill`: trains a small query tower into a large one's space; documents and index are left as they are."""

import dataclasses
from typing import Any, Self

from jaxscale.errors import UsageError, VerificationError
from jaxscale.mesh import mesh_from_text, spec_of
from jaxscale.train.run_folder import RunFolder
from launch.processes import place_of_this_process
from launch.verbs import train
from retrieval.towers.distillation.job import DistillationJob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(train.Command):
    """Distils a query tower: it learns the teacher's vectors of queries; the same command again goes on.

    The folder OUT/model is a retriever with the student as its query tower. It searches the vectors and the index that
    the teacher's document tower made; these are read and never written, and their hashes are compared before and after.
    The teacher's vectors of the queries are made once and kept beside the run, in OUT.teacher-queries.

    Example: jaxscale distill distill_query_tower --teacher.retriever runs/large --teacher.vectors vectors
      --data.folder beir --student.num-layers 2 --out runs/student

    Attributes:
      out: the run folder.
      mesh: as fsdp=4,tensor=2; empty for what the recipe says, else all devices on data.
      fork_from: RUN or RUN@step: a new run that begins with the state of another one, whatever its job.
      init_from: another encoder to begin with than the teacher's layers: a retriever, model or run folder.
      profile: START:STOP: the steps that jax's profiler records.
      job: the recipe's job.
      words: of the command line.
    """

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages.
          job: what it returns.

        Raises:
          UsageError: the recipe distils nothing.
        """
        require_distillation(name, job)
        return super().for_recipe(name, job)

    def resolved_job(self) -> DistillationJob:
        """The job with the verb's own flags put into it."""
        job = super().resolved_job()
        assert isinstance(job, DistillationJob)  # `for_recipe` refuses any other
        return job

    def run(self) -> dict[str, Any]:
        """Distils, compares the frozen documents' hashes, prints what it came to, and returns it."""
        if place_of_this_process() is not None:
            raise UsageError("distill works in one process, which may have all devices of its host; start one")
        with RunFolder(self.out, writes=False):
            pass  # the teacher's vectors are written before the run folder is: a place that is no such is refused first
        job = self.resolved_job()
        job.check(spec_of(mesh_from_text(job.operation.mesh)))
        before = job.frozen()
        report = super().run()
        frozen = {"before": before, "after": job.frozen()}
        changed = [name for name in before if before[name] != frozen["after"].get(name)]
        if changed:
            raise VerificationError(
                f"the {' and the '.join(changed)} changed while the student was distilled; restore them from a copy",
                report={**report, "frozen": frozen},
            )
        for name, identity in before.items():
            print(f"{name} unchanged: {identity[:16]}")
        return {**report, "frozen": frozen}


def require_distillation(name: str, job: Any) -> None:
    """Refuses a recipe's job that distils nothing.

    Raises:
      UsageError: it is another kind of job.
    """
    if not isinstance(job, DistillationJob):
        raise UsageError(
            f"recipe {name!r} gives a {type(job).__name__}, which distils no query tower; use distill_query_tower, or "
            f"`jaxscale train {name}`"
        )
