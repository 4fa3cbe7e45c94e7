"""Language models small enough to train in a test."""

import dataclasses
import json
import os

from configs.palm import palm_tiny
from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.token_objective import TokenObjective


def tiny():
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=320, max_positions=32
        ),
        sequence_length=16,
        training=TrainingIdentity(
            num_steps=12,
            global_batch_size=8,
            optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant", peak_learning_rate=1e-2)),
        ),
        operation=Operation(checkpoint_every_steps=4, log_every_steps=1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedObjective(TokenObjective):
    """Writes the samples of every batch that this process makes to the file that RECORDED_SAMPLES names."""

    def batch(self, number, rows=slice(None)):
        with open(os.environ["RECORDED_SAMPLES"], "a") as file:
            file.write(json.dumps([number, self.sample_ids(number)[rows].tolist()]) + "\n")
        return super().batch(number, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedJob(LanguageModelJob):
    def objective(self):
        made = super().objective()
        return RecordedObjective(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})


def recorded_palm():
    job = palm_tiny()
    return RecordedJob(**{field.name: getattr(job, field.name) for field in dataclasses.fields(job)})
