"""Rows on their way to the experts of other devices and back, as many as there are: ragged all-to-alls over an axis.

A device has its rows sorted by expert. Each run goes to the device of its expert and is written there where that
expert's rows are, behind those of the devices before: what arrives is sorted by expert, and nobody sorts again.

The buffer that receives holds the worst case, in which all the tokens of all devices of the axis choose experts of one:
`devices * tokens * min(choices per token, experts of a device)` rows. Work is done for the rows that are there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """Between the devices of a mesh axis, each of which has as many experts; none where `over` names no axis.

    Attributes:
      over: the mesh axis, of which a `shard_map` is around; () for experts that are all here.
      num_experts_here: experts of one device.
      num_chosen: experts that read a token.
      platform: of the devices, as `tpu`; "" where there is no axis.
    """

    over: tuple[str, ...]
    num_experts_here: int
    num_chosen: int
    platform: str

    @property
    def num_devices(self) -> int:
        """Devices that share the experts."""
        return math.prod(jax.lax.axis_size(axis) for axis in self.over)

    @property
    def num_experts(self) -> int:
        """E, of all devices."""
        return self.num_devices * self.num_experts_here

    def to_experts(
        self, rows: Float[Array, "R D"], counts: Int32[Array, " E"]
    ) -> tuple[Float[Array, "P D"], Int32[Array, " X"]]:
        """The rows that the experts of this device read, sorted by expert, and how many each of them reads.

        Args:
          rows: of this device's tokens, one for each choice, sorted by expert.
          counts: how many of them each of all experts reads.
        """
        if not self.over:
            return rows, counts
        at = self._places(counts)
        num_tokens = rows.shape[0] // self.num_chosen
        most = self.num_devices * num_tokens * min(self.num_chosen, self.num_experts_here)
        there = jnp.zeros((most, rows.shape[1]), rows.dtype)
        received = _exchanged(
            rows, there, at.sent, counts, at.there, at.received_counts, self.over, platform=self.platform
        )
        return received, at.received_counts.reshape(self.num_devices, -1).sum(axis=0)

    def to_tokens(self, rows: Float[Array, "P D"], counts: Int32[Array, " E"], num_rows: int) -> Float[Array, "R D"]:
        """What came of the rows of `to_experts`, on the devices of their tokens and in the order they had there.

        Args:
          rows: in the order of what `to_experts` returns.
          counts: as given to it.
          num_rows: R.
        """
        if not self.over:
            return rows
        at = self._places(counts)
        back = jnp.zeros((num_rows, rows.shape[1]), rows.dtype)
        return _exchanged(
            rows, back, at.received, at.received_counts, at.back, counts, self.over, platform=self.platform
        )

    def _places(self, counts: Int32[Array, " E"]) -> "_Places":
        me, here = jax.lax.axis_index(self.over), self.num_experts_here
        # [device that has the tokens, device that has the experts, expert of it]
        all_counts = jax.lax.all_gather(counts, self.over).reshape(self.num_devices, self.num_devices, here)
        sent = _starts(all_counts.reshape(self.num_devices, -1)).reshape(all_counts.shape)
        # On each device by expert, then by the device that the rows came from.
        by_expert = all_counts.transpose(1, 2, 0)
        arrived = _starts(by_expert.reshape(self.num_devices, -1)).reshape(by_expert.shape).transpose(2, 0, 1)
        return _Places(
            sent=sent[me].reshape(-1),
            there=arrived[me].reshape(-1),
            received=arrived[:, me].reshape(-1),
            back=sent[:, me].reshape(-1),
            received_counts=all_counts[:, me].reshape(-1),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Places:
    """Where runs begin, one for each other device and expert: E of them, as many as this device sends and receives.

    Attributes:
      sent: here, of the runs that go to the experts.
      there: of the same runs, on the devices of their experts.
      received: here, of the runs that came to this device's experts.
      back: of the same runs, on the devices of their tokens.
      received_counts: rows of each of these.
    """

    sent: Int32[Array, " E"]
    there: Int32[Array, " E"]
    received: Int32[Array, " E"]
    back: Int32[Array, " E"]
    received_counts: Int32[Array, " E"]


def _exchanged(
    rows: Float[Array, "R D"],
    into: Float[Array, "P D"],
    starts: Int32[Array, " E"],
    counts: Int32[Array, " E"],
    starts_there: Int32[Array, " E"],
    counts_here: Int32[Array, " E"],
    axes: tuple[str, ...],
    *,
    platform: str,
) -> Float[Array, "P D"]:
    """`jax.lax.ragged_all_to_all`; for the CPU backend, which has none, the same by gathering all rows everywhere."""
    if platform != "cpu":
        return jax.lax.ragged_all_to_all(rows, into, starts, counts, starts_there, counts_here, axis_name=axes)
    me = jax.lax.axis_index(axes)
    everywhere = [jax.lax.all_gather(runs, axes) for runs in (starts, counts, starts_there)]
    num_devices = len(everywhere[0])
    # Of the runs of every device, those that come here. [1, device, run]
    start, count, at = (runs.reshape(1, num_devices, num_devices, -1)[:, :, me] for runs in everywhere)
    start = start + jnp.arange(num_devices, dtype=jnp.int32)[None, :, None] * len(rows)
    place = jnp.arange(len(into), dtype=jnp.int32)[:, None, None] - at
    comes = (place >= 0) & (place < count)
    source = jnp.sum(jnp.where(comes, start + place, 0), axis=(1, 2))
    arrived = jax.lax.all_gather(rows, axes, tiled=True)[source]
    return jnp.where(comes.any(axis=(1, 2))[:, None], arrived, into)


def _starts(counts: Int32[Array, "X N"]) -> Int32[Array, "X N"]:
    """Where each run of a line begins, the runs being one behind the other."""
    return jnp.cumsum(counts, axis=1) - counts
