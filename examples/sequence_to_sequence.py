"""An encoder-decoder that learns to write numbers in words. `python -m examples.sequence_to_sequence`."""

import numpy as np
import optax

from examples.texts import NUM_BYTES, adam
from jaxscale.nn.encoder_decoder import EncoderDecoder
from jaxscale.nn.families import t5_config
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SOURCE, TARGET = 8, 48
CONFIG = t5_config(
    num_layers=2, d_model=64, num_heads=4, head_dim=16, d_ff=128, vocab_size=NUM_BYTES, max_positions=TARGET
)


def spelled(number):
    return " ".join(DIGITS[int(digit)] for digit in str(number))


def row(text, length):
    """Its bytes, then zeros."""
    return np.frombuffer(text.encode().ljust(length, b"\0"), np.uint8).astype(np.int32)


def collate(numbers):
    targets = np.stack([row(spelled(number), TARGET) for number in numbers])
    return {
        "sources": np.stack([row(str(number), SOURCE) for number in numbers]),
        "tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],  # what the decoder has read so far
        "targets": targets,
    }


def loss(model, batch, key):
    scores, _ = model(batch["sources"], batch["tokens"])
    right = (scores.argmax(axis=-1) == batch["targets"]).mean()
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["targets"]).mean(), {"accuracy": right}


def predict(model, batch):
    return model(batch["sources"], batch["tokens"])[0].argmax(axis=-1)


TASK = Task(
    name="numbers", model=lambda key: EncoderDecoder(CONFIG, key=key), collate=collate, loss=loss, predict=predict
)


def main(out="runs/numbers", num_steps=400, mesh=""):
    numbers = [int(n) for n in np.random.default_rng(0).integers(0, 10**6, size=4096)]
    return fit(TASK, numbers, out=out, training=adam(num_steps, 32, 3e-3), operation=Operation(mesh=mesh))


if __name__ == "__main__":
    print(bytes(main().predict([31415])[0].astype(np.uint8)).rstrip(b"\0").decode())
