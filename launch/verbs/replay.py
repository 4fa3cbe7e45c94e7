"""`jaxscale replay`: one step of a run once more, and again: the same bits as then, or which differ."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxscale import typed_json
from jaxscale.errors import UsageError, VerificationError
from jaxscale.mesh import mesh_from_text, spec_of
from jaxscale.train.replay import replay
from jaxscale.train.run_folder import read_job
from jaxscale.train.several_runs import SeveralRuns
from launch.cli import parse
from launch.verbs import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Runs one step of a run once more, and again: the same bits as then, or exit code 5 and what differs.

    It begins with the last checkpoint before the step and only reads the run folder. Run it where the run was started
    (relative paths), on as many devices (`--devices`).

    Example: jaxscale replay runs/a --step 120

    Attributes:
      run_folder: of the run.
      step: the one to run again; 1 is the first.
    """

    run_folder: tyro.conf.Positional[Path]
    step: int

    def run(self) -> dict[str, Any]:
        """Replays, prints what was found, and returns it."""
        words = read_job(self.run_folder).command
        if not words:
            raise UsageError(
                f"{self.run_folder} does not say by which command it was started, so that its job can't be made again; "
                "jaxscale.train.replay.replay takes the job from Python"
            )
        job = parse("train", train, list(words)).resolved_job()
        if isinstance(job, SeveralRuns):
            raise UsageError(
                f"{self.run_folder} is a folder of several runs, and none of them alone is what its command trains; "
                "jaxscale.train.replay.replay takes the job of one from Python"
            )
        job.check(spec_of(mesh_from_text(job.operation.mesh)))
        found = replay(job.objective(), job.training, job.operation, self.run_folder, self.step)
        for change in found.environment_changes:
            print(f"changed since the run: {change}")
        print(f"step {found.step}, batch {found.batch}, from the state of step {found.from_step}: {found.state_hash}")
        print(f"samples {found.sample_ids}")
        if found.differences:
            raise VerificationError(
                f"step {found.step} of {self.run_folder} does not come out the same: " + "; ".join(found.differences)
            )
        print(
            f"run twice with equal bits; equal to what the run wrote: {', '.join(found.compared) or 'it wrote nothing'}"
        )
        report: dict[str, Any] = typed_json.encode(found)
        return report
