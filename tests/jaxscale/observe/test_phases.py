"""A run is in one phase at a time, and comes back to the one around it."""

import pytest

from jaxscale.observe.phases import Phases


def fail_while_saving(phases):
    with phases.enter("compile"), phases.enter("checkpoint"):
        raise OSError(phases.current)


def test_phases_nest_and_come_back_after_an_error():
    heard, times = [], iter(range(99))
    phases = Phases(clock=lambda: float(next(times)))
    phases.listen(lambda phase, at_s: heard.append((phase, at_s)))
    phases.become("idle")
    with pytest.raises(OSError, match="checkpoint"):
        fail_while_saving(phases)
    assert heard == [("init", 0), ("idle", 1), ("compile", 2), ("checkpoint", 3), ("compile", 4), ("idle", 5)]
