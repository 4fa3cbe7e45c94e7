"""What holds for every verb: help with an example, unknown flags, and bad input that writes nothing."""

import json
import os
from pathlib import Path

import pytest

from launch.cli import RECIPE_VERBS, VERBS, main
from launch.verbs import doctor

RECIPE = "two_tower_tiny"
DISTILL_VERBS, DISTILL_RECIPE = ("distill", "distill study"), "distill_query_tower_tiny"


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """An own folder with an empty folder, a file of garbage and an empty file in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_WAIT_POLICY", "TF_CPP_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "2"))
    monkeypatch.setattr(doctor, "check_native_libraries", lambda: [])  # starts a process; its own test runs it
    Path("folder").mkdir()
    Path("garbage").write_bytes(b"\x00garbage\xff\n")
    Path("empty").write_bytes(b"")


def words_of(verb):
    """The verb with what has to stand behind it."""
    behind = {
        "compare": "garbage garbage",
        "data stats": "folder",
        "import hf": "folder",
        "plan diff": "garbage garbage",
        "replay": "folder",
        "report": "folder",
        "verify": "folder",
        "scaling retrieval": "two_tower_family",
    }
    behind = dict.fromkeys(RECIPE_VERBS, RECIPE) | dict.fromkeys(DISTILL_VERBS, DISTILL_RECIPE) | behind
    return [*verb.split(), *behind.get(verb, "").split()]


def tree():
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in Path().rglob("*"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words_of(verb), "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Example: jaxscale {verb}" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_a_usage_error(verb, capsys):
    before = tree()
    with pytest.raises(SystemExit) as stopped:
        main([*words_of(verb), "--no-such-flag-anywhere", "3"])
    assert stopped.value.code == 2
    assert "no-such-flag-anywhere" in "".join(capsys.readouterr())
    assert tree() == before


BAD_INPUT = [
    ("benchmark --model none --data folder --out out", 3, "none"),
    ("benchmark --model folder --data folder --out out", 3, "folder"),
    ("benchmark --model folder --data folder --out out --dense-weight 2", 2, "dense_weight=2.0 must be between 0"),
    ("benchmark --model folder --data folder --out out --split dev", 2, "split and dev are both 'dev'"),
    ("compare none garbage --data folder --out page", 3, "none: can't be read"),
    ("compare garbage garbage --data folder --out page", 3, "garbage:1"),
    ("compare empty empty --data none --out page", 3, "none"),
    ("compare empty empty --data folder --out page", 3, "holds no corpus.jsonl"),
    ("compare empty empty --data folder --out folder", 2, "folder is a folder"),
    ("compare empty empty --data folder --out page --measure P", 2, "needs a cutoff"),
    ("compare empty empty --data folder --out page --num-shown 0", 2, "num_shown=0 must be at least 1"),
    ("corpus pydocs --packages zstandard --out garbage", 2, "garbage"),
    ("corpus pydocs --packages zstandard --out garbage/corpus", 2, "garbage is no folder"),
    ("data stats none", 3, "none"),
    ("data stats folder", 3, "MANIFEST.json"),
    ("data train-tokenizer --input none --out out", 3, "none"),
    ("data train-tokenizer --input folder --out out", 3, "holds no file of documents"),
    ("data train-tokenizer --input garbage --out out", 2, "garbage: what it holds is unknown"),
    ("data train-tokenizer --input garbage --out folder", 2, "folder is a folder"),
    ("demo --out garbage", 2, "garbage is a file"),
    ("demo --out garbage/demo", 2, "garbage is no folder"),
    ("demo --out out --num-steps 0", 2, "num_steps=0 must be at least 1"),
    ("embed --model none --corpus folder --out out", 3, "none"),
    ("embed --model folder --corpus folder --out out", 3, "folder"),
    ("embed --model garbage --corpus folder --out out", 3, "garbage"),
    ("eval --run none --qrels empty", 3, "none"),
    ("eval --run garbage --qrels garbage", 3, "garbage:1"),
    ("eval --run empty --qrels none", 3, "none"),
    ("eval --run empty --qrels empty --seed -1", 2, "seed=-1"),
    ("explain nothing_like_it", 2, "unknown recipe"),
    ("generate --model none --prompt x", 3, "none"),
    ("generate --model folder --prompt x", 3, "folder"),
    ("generate --model folder", 2, "there is no prompt"),
    ("generate --model folder --prompts garbage", 3, "garbage can't be read as text"),
    ("generate --model folder --prompt x --temperature -1", 2, "temperature=-1.0"),
    ("export hf --model none --out out", 3, "none"),
    ("export hf --model folder --out out", 3, "MANIFEST.json"),
    ("export sentence-transformers --model none --out out", 3, "none"),
    ("export sentence-transformers --model folder --out out", 3, "MANIFEST.json"),
    ("import hf none --out out", 3, "none"),
    ("import hf folder --out out", 3, "config.json"),
    ("mine --model none --corpus folder --out out", 3, "none"),
    ("mine --model folder --corpus folder --out out", 3, "folder"),
    ("mine --model folder --corpus folder --out garbage", 2, "garbage exists already"),
    ("mine --model folder --corpus folder --out garbage/out", 2, "garbage is no folder"),
    ("plan diff none garbage", 3, "none: can't be read"),
    ("plan diff garbage garbage", 3, "garbage: can't be read"),
    ("rerank --model none --corpus folder --run none --out out", 3, "none"),
    ("rerank --model folder --corpus folder --run garbage --out out", 3, "garbage:1"),
    ("rerank --model folder --corpus folder --negatives folder --out out", 3, "folder"),
    ("rerank --model folder --corpus folder --negatives folder --out garbage", 2, "garbage exists already"),
    ("rerank --model folder --corpus folder --run garbage --out folder", 2, "folder is a folder"),
    ("rerank --model folder --corpus folder --out out", 2, "give --run FILE"),
    ("train reranker_tiny --out out --data.folder none", 3, "none"),
    ("train reranker_minilm --out out --data.folder folder", 2, "model.init_from is not given"),
    ("scaling retrieval two_tower_tiny --out out", 2, "expected a TowerFamily"),
    ("scaling retrieval two_tower_family --out out", 2, "job.data.folder is not given"),
    ("scaling retrieval two_tower_family --job.data.folder none --out out", 3, "none"),
    ("scaling retrieval two_tower_family --widths 32 --out out", 2, "widths=(32,) and num_layers="),
    ("search --model none --index none --query x", 3, "none"),
    ("search --model folder --index folder --query x", 3, "folder"),
    ("search --bm25 none --queries none --run folder", 2, "folder is a folder"),
    ("search --bm25 none --queries none --run garbage/run", 2, "garbage is no folder"),
    ("search --bm25 none --queries none --run out --tag=", 2, "must be one word"),
    ("train two_tower_tinyy --out out", 2, "did you mean 'two_tower_tiny'?"),
    ("train t5_large --out out", 2, "data.datasets is not given"),
    ("train llama2_7b --out out", 2, "data.datasets is not given"),
    ("train two_tower_tiny --out out --data.folder none", 3, "none"),
    ("train two_tower_tiny --out out --data.folder folder --mesh fsdp=3", 2, "fsdp=3"),
    ("train two_tower_tiny --out out --data.folder folder --mesh nonsense=2", 2, "nonsense"),
    ("tune llama2_7b", 2, "tune needs --topology"),
    ("tune llama2_7b --topology v5e:2", 2, "expected 2 sizes"),
    ("replay none --step 1", 3, "job.json"),
    ("replay folder --step 1", 3, "job.json"),
    ("report none", 3, "job.json"),
    ("report folder", 3, "job.json"),
    ("verify none", 3, "none"),
    ("verify folder", 3, "nothing committed"),
    ("distill two_tower_tiny --out out", 2, "distils no query tower"),
    ("distill distill_query_tower_tiny --out out", 2, "data.folder is not given"),
    ("distill distill_query_tower_tiny --out out --data.folder folder", 2, "teacher.retriever is not given"),
    ("distill distill_query_tower_tiny --out out --data.folder folder --teacher.retriever none", 3, "none"),
    ("distill distill_query_tower_tiny --out folder/x --data.folder folder --student.num-layers 0", 2, "num_layers=0"),
    ("distill study two_tower_tiny --out out", 2, "distils no query tower"),
    ("distill study distill_query_tower_tiny --out out --layers 1 1", 2, "none twice"),
    ("distill study distill_query_tower_tiny --out out --num-timed 3", 2, "num_timed=3 must be at least 32"),
    ("distill study distill_query_tower_tiny --out out --data.folder folder", 2, "teacher.retriever is not given"),
    ("doctor --at none", 4, "not fit to run"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD_INPUT)
def test_bad_input_is_one_message_and_its_exit_code_and_writes_nothing(line, code, message, capsys):
    before = tree()
    assert main([*line.split(), "--json", "report.json"]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("jaxscale: ") == 1
    assert "Traceback" not in shown
    report = Path("report.json")
    if report.exists():  # a recipe that there is not is found before the report is tried
        assert json.loads(report.read_text())["exit_code"] == code
        report.unlink()
    assert tree() == before
