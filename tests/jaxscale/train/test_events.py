"""Events are whole lines, whatever a kill left behind."""

from jaxscale.train.events import EventLog, read_events


def test_events_are_read_back_in_order_and_shown(tmp_path, capsys):
    log = EventLog(tmp_path)
    log.write("started", step=0, mesh="data=2")
    log.write("saved", step=4, loss=0.25)
    assert [(e["event"], e["step"]) for e in read_events(tmp_path)] == [("started", 0), ("saved", 4)]
    assert capsys.readouterr().err == "started step=0 mesh=data=2\nsaved step=4 loss=0.25\n"


def test_a_line_cut_short_costs_itself_only(tmp_path):
    log = EventLog(tmp_path)
    log.write("started", step=0)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "sav')
    log.write("resumed", step=0)
    assert [e["event"] for e in read_events(tmp_path)] == ["started", "resumed"]


def test_no_file_is_no_events(tmp_path):
    assert read_events(tmp_path) == []
