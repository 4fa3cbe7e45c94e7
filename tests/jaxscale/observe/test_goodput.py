"""The parts of the ledger sum to the wall time, whatever happens in it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.observe.goodput import Ledger
from jaxscale.observe.phases import Phases


class Clock:
    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


def test_each_second_belongs_to_the_innermost_phase():
    clock, ledger = Clock(), Ledger()
    phases = Phases(clock=clock)
    phases.listen(ledger)
    clock.s += 1
    phases.become("idle")
    with phases.enter("step"):
        clock.s += 4
        with phases.enter("checkpoint"):
            clock.s += 2
        clock.s += 3
    clock.s += 0.5
    ledger.waste(5.0)
    read = ledger.read(phases.now())
    assert {name: s for name, s in read.phases_s.items() if s} == {"init": 1, "idle": 0.5, "step": 2, "checkpoint": 2}
    assert (read.wasted_s, read.total_s, read.share) == (5.0, 10.5, 2 / 10.5)


@given(
    st.lists(st.tuples(st.sampled_from(["step", "data", "compile", "restore"]), st.floats(0, 1e4)), max_size=30),
    st.floats(0, 1),
)
def test_the_parts_sum_to_the_wall_time(passed, wasted_share):
    clock, ledger = Clock(), Ledger()
    phases = Phases(clock=clock)
    phases.listen(ledger)
    for phase, duration_s in passed:
        phases.become(phase)
        clock.s += duration_s
    phases.become("idle")
    ledger.waste(ledger.step_s * wasted_share)
    assert math.isclose(ledger.read(clock.s).total_s, clock.s - 100.0, rel_tol=1e-9, abs_tol=1e-6)


def test_no_more_is_wasted_than_was_spent():
    with pytest.raises(ValueError, match=r"wasted 1\.0 s of 0\.0 s"):
        Ledger().waste(1.0)
