"""Language models small enough to train in a test."""

from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


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
