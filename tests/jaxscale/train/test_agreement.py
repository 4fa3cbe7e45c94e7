"""What processes agree on, by a coordination service that is a dict: none comes to the boundary before it knows."""

import random

import pytest

from jaxscale.train import coordination
from jaxscale.train.agreement import Agreement, agreed_step, wait_for_all
from tests.jaxscale.train.dict_service import Service

MAX_AHEAD = 2


@pytest.fixture
def processes(monkeypatch):
    """Makes so many processes of one job."""

    def make(num):
        monkeypatch.setattr(coordination.distributed.global_state, "num_processes", num)
        monkeypatch.setattr(coordination.distributed.global_state, "client", Service())
        return [Agreement(MAX_AHEAD) for _ in range(num)]

    return make


def run(all_of_them, asked, num_boundaries, rng, *, silent=()):
    """Steps processes in a random order, none more than the steps in flight ahead; when each found it due.

    `asked` are the (process, boundary) at which one is asked, `silent` the boundaries at which none looks.
    """
    at, found = [0] * len(all_of_them), [[] for _ in all_of_them]
    while min(at) < num_boundaries:
        # A process that is at boundary n has waited for step n - MAX_AHEAD, which all have dispatched.
        free = [i for i, n in enumerate(at) if n < num_boundaries and n - min(at) <= MAX_AHEAD]
        who = rng.choice(free)
        at[who] += 1
        one = all_of_them[who]
        one.next_boundary()
        if (who, at[who]) in asked:
            one.propose("stop")
        if at[who] not in silent and one.due("stop"):
            found[who].append(at[who])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_all_do_it_once_and_at_the_same_boundary(processes, seed):
    rng = random.Random(seed)
    asked = {(who, rng.randint(5, 9)) for who in range(4) if rng.random() < 0.6} | {(2, 7)}
    found = run(processes(4), asked, 40, rng)
    assert len(found[0]) == 1
    assert all(other == found[0] for other in found)
    assert 5 <= found[0][0] <= 9 + MAX_AHEAD + 2


def test_it_can_be_asked_for_again(processes):
    found = run(processes(3), {(0, 5), (1, 20)}, 40, random.Random(0))
    assert found == [[9, 24]] * 3


def test_a_boundary_at_which_nobody_asks_is_made_up_for(processes):
    found = run(processes(3), {(0, 5)}, 40, random.Random(0), silent=(9, 10))
    assert found == [[11]] * 3


def test_a_process_by_itself_does_it_at_once():
    alone = Agreement(MAX_AHEAD)
    alone.next_boundary()
    assert not alone.due("stop")
    alone.propose("stop")
    assert alone.due("stop")
    assert not alone.due("stop")
    wait_for_all("by itself")
    assert [agreed_step(step) for step in (None, 7)] == [None, 7]
