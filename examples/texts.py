"""What the examples read: the reference pages that come with Python, as rows of bytes."""

from pydoc_data.topics import topics

import numpy as np

from jaxscale.train.job import TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig

NUM_BYTES = 256


def rows(length):
    """int32 [N length], N rows of text one after the other."""
    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    return np.frombuffer(text, np.uint8)[: len(text) // length * length].reshape(-1, length).astype(np.int32)


def adam(num_steps, batch_size, rate):
    """A run's identity: Adam with a constant rate."""
    schedule = ScheduleConfig(kind="constant", peak_learning_rate=rate)
    return TrainingIdentity(num_steps=num_steps, global_batch_size=batch_size, optimizer=AdamWConfig(schedule=schedule))
