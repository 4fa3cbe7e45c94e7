"""`jaxscale scaling retrieval`: its flags become the family, what the study found its table and its report."""

import json

from jaxscale import typed_json
from launch.cli import main
from launch.verbs import scaling_retrieval
from retrieval.scaling.laws import fit_laws
from tests.retrieval.scaling.test_laws import points_of


def test_flags_are_the_familys_and_the_answer_is_a_table_and_json(tmp_path, monkeypatch, capsys):
    asked = {}
    points = points_of()

    def run_study(family, out):
        asked.update(family=family, out=out)
        return points, fit_laws(points)

    monkeypatch.setattr(scaling_retrieval, "run_study", run_study)
    flags = "--job.data.folder beir --num-layers 1 2 4 --widths 64 128 256 --num-pairs 4096 8192 --num-epochs 2"
    words = f"scaling retrieval two_tower_family {flags} --mesh fsdp=2 --out {tmp_path / 'study'}"
    assert main([*words.split(), "--json", str(tmp_path / "report.json")]) == 0
    family = asked["family"]
    assert [str(size) for size in family.sizes] == ["l1-w64", "l2-w128", "l4-w256"]
    assert (family.num_pairs, family.num_epochs, family.job.data.folder) == ((4096, 8192), 2, "beir")
    assert (family.job.operation.mesh, asked["out"]) == ("fsdp=2", tmp_path / "study")
    shown = capsys.readouterr().out
    assert "L(N, D) = 0.4 + 40 / N^0.400 + 30 / D^0.500" in shown
    assert "held out (N = 1,800,000, D = 16,384): measured 0.7603" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["points"] == typed_json.encode(points)
    assert report["laws"]["joint"]["terms"][1]["size"] == "D"
