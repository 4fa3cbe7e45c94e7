"""The checks of a job's fields."""

import json

import pytest

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig

ADAMW = AdamWConfig(schedule=ScheduleConfig(decay_steps=100))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"seed": 1 << 32}, "seed=4294967296"),
        ({"global_batch_size": 10, "grad_accum": 4}, "global_batch_size=10 must be divisible by grad_accum=4"),
        ({"num_steps": 101}, "num_steps=101 goes beyond decay_steps=100"),
    ],
)
def test_a_wrong_identity_is_named(fields, named):
    with pytest.raises(UsageError, match=named):
        TrainingIdentity(**{"num_steps": 100, "optimizer": ADAMW, **fields})


def test_a_run_may_end_before_its_schedule_and_outlast_one_that_does_not_end_at_zero():
    assert TrainingIdentity(num_steps=3, optimizer=ADAMW).num_steps == 3
    kept = AdamWConfig(schedule=ScheduleConfig(decay_steps=100, final_learning_rate=1e-5))
    assert TrainingIdentity(num_steps=500, optimizer=kept).num_steps == 500


@pytest.mark.parametrize("field", ["checkpoint_every_steps", "keep_last", "keep_every_steps", "eval_every_steps"])
def test_a_wrong_operation_is_named(field):
    with pytest.raises(UsageError, match=f"{field}=0 must be at least 1"):
        Operation(**{field: 0})


@pytest.mark.parametrize("optimizer", [ADAMW, AdafactorConfig(schedule=ScheduleConfig(kind="rsqrt"))])
def test_json_tells_optimizers_apart_and_leaves_adamw_as_it_was(optimizer):
    identity = TrainingIdentity(num_steps=100, optimizer=optimizer)
    encoded = json.loads(json.dumps(typed_json.encode(identity)))
    assert typed_json.decode(TrainingIdentity, encoded) == identity
    assert encoded["optimizer"].get("type") == (None if optimizer is ADAMW else "AdafactorConfig")
