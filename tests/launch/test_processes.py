"""What the environment of a process tells it."""

from pathlib import Path

import pytest

from jaxscale.errors import UsageError
from launch.processes import Place, is_first_process, joined, place_of_this_process

VARIABLES = ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "HEARTBEATS", "HEARTBEAT_S", "STALL_S")

PLACE = {"PROCESS_ID": "1", "NUM_PROCESSES": "2", "COORDINATOR": "h:1"}


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(f"JAXSCALE_{name}", raising=False)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize("heartbeats", [None, Path("/beats")])
def test_a_place_is_read_as_it_was_written(environment, heartbeats):
    place = Place(
        coordinator="host:1", num_processes=4, process_id=3, heartbeats=heartbeats, heartbeat_s=1.5, stall_s=60.0
    )
    environment(place.environment())
    assert place_of_this_process() == place
    assert not is_first_process()


def test_a_process_by_itself_is_the_first_and_joins_nobody(environment):
    assert place_of_this_process() is None
    assert is_first_process()
    with joined() as heartbeat:
        assert heartbeat is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PROCESS_ID": "1"}, "JAXSCALE_PROCESS_ID is set and JAXSCALE_COORDINATOR, JAXSCALE_NUM_PROCESSES is not"),
        ({**PLACE, "HEARTBEAT_S": "often"}, "JAXSCALE_HEARTBEAT_S='often' must be a number of seconds, at least 0"),
        ({**PLACE, "HEARTBEATS": "/beats", "HEARTBEAT_S": "0"}, "JAXSCALE_HEARTBEAT_S=0 says none; use 1, or neither"),
        ({**PLACE, "STALL_S": "-1"}, "JAXSCALE_STALL_S='-1' must be a number of seconds"),
        ({"PROCESS_ID": "x", "NUM_PROCESSES": "2", "COORDINATOR": "h:1"}, "JAXSCALE_PROCESS_ID='x' must be a whole"),
    ],
)
def test_a_place_that_is_none_is_refused(environment, values, message):
    environment({f"JAXSCALE_{name}": value for name, value in values.items()})
    with pytest.raises(UsageError, match=message):
        place_of_this_process()
