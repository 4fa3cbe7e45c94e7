"""Recipes small enough to compile in a test, named as `path/to/this_file.py:function`."""

import dataclasses

from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def tiny_decoder() -> LanguageModelJob:
    """2 layers, 64 wide."""
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, d_ff=128, vocab_size=256, max_positions=32
        ),
        sequence_length=32,
        training=TrainingIdentity(
            num_steps=10,
            global_batch_size=16,
            optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant")),
        ),
        operation=Operation(mesh="fsdp=4,tensor=2"),
    )


def far_too_large() -> LanguageModelJob:
    """A decoder of 9 layers whose state alone is more than 8 chips of 16 GB hold."""
    job = tiny_decoder()
    return dataclasses.replace(
        job,
        transformer=decoder_config(
            num_layers=9, d_model=8192, num_heads=64, num_kv_heads=64, d_ff=65536, vocab_size=512, max_positions=32
        ),
    )


def nothing_to_plan() -> str:
    return "no job"
