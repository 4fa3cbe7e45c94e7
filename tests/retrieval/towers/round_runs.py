"""Training in rounds that tests kill: functions of a module, so that a process can be started for each."""

import dataclasses
from pathlib import Path

from configs.two_tower import two_tower_tiny
from jaxscale.mesh import mesh_from_text, spec_of
from jaxscale.train.signals import StopSignals
from retrieval.towers.mined_job import MinedTowerJob
from retrieval.towers.mining import Mining
from retrieval.towers.rounds import Rounds


def mined_tiny() -> MinedTowerJob:
    """`two_tower_tiny` in two rounds of a few steps."""
    job = two_tower_tiny()
    # One device, so that programs may be read back from a folder; the last step's model, whatever the dev metric says.
    operation = dataclasses.replace(
        job.operation, mesh="data=1@0", checkpoint_every_steps=2, eval_every_steps=None, best_metric=""
    )
    return MinedTowerJob(
        towers=job.towers,
        data=job.data,
        contrastive=job.contrastive,
        training=dataclasses.replace(job.training, num_steps=6),
        operation=operation,
        rounds=Rounds(mining=Mining(depth=20, num_negatives=4, sampling="uniform")),
    )


def mined_job(folder: Path, cache: Path | str = "off", **changes) -> MinedTowerJob:
    """`mined_tiny` on a folder; `changes` are fields by the name of their part."""
    job = mined_tiny()
    changes = {"data": {}, "operation": {}} | changes
    changes["data"] = {"folder": str(folder)} | changes["data"]
    changes["operation"] = {"compile_cache": str(cache)} | changes["operation"]
    parts = {part: dataclasses.replace(getattr(job, part), **fields) for part, fields in changes.items()}
    return dataclasses.replace(job, **parts)


def train_job(job: MinedTowerJob, out: Path):
    """What `jaxscale train` does with it."""
    with StopSignals() as stop:
        job.check(spec_of(mesh_from_text(job.operation.mesh)))
        return job.train_in(out, stop=stop)


def train_mined(folder: Path, cache: Path, out: Path) -> None:
    """Trains the job of `mined_job`, in a process of its own."""
    train_job(mined_job(folder, cache), out)
