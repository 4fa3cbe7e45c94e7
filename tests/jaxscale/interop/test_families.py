"""Every family: scores as transformers computes them, tensors out as they came in, and in memory one at a time."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxscale.errors import DataError, UsageError
from jaxscale.interop.huggingface import convert, export_model, import_model, open_folder
from jaxscale.interop.parity import our_scores
from jaxscale.interop.tensor_files import INDEX_FILE, WEIGHTS_FILE, open_tensors
from jaxscale.nn.families import palm_config
from jaxscale.nn.functional import init_params
from jaxscale.nn.headless import headless, headless_params
from jaxscale.nn.model_folder import ModelFolder, load_model, save_model
from tests.jaxscale.interop.small_folders import CONFIGS, GOLDEN, batch_of, summary, write_folder

EVERY_FAMILY = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def folder(tmp_path, request):
    write_folder(tmp_path / "hf", request.param)
    return tmp_path / "hf"


def of(name):
    return pytest.mark.parametrize("folder", [name], indirect=True)


@EVERY_FAMILY
def test_scores_are_those_of_transformers(name, tmp_path):
    write_folder(tmp_path / "hf", name)
    expected = json.loads(GOLDEN.read_text())[name]
    got = summary(our_scores(import_model(tmp_path / "hf"), batch_of(name)))
    for part in ("first", "last"):
        np.testing.assert_allclose(got[part], expected[part], atol=1e-4, err_msg=part)
    assert got["sum"] == pytest.approx(expected["sum"], rel=1e-5)


@EVERY_FAMILY
def test_what_goes_out_is_what_came_in(name, tmp_path):
    write_folder(tmp_path / "hf", name)
    convert(tmp_path / "hf", tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out")
    before, after = open_folder(tmp_path / "hf"), open_folder(tmp_path / "out")
    assert after.card.config == before.card.config
    assert after.card.tokenizer.fingerprint == before.card.tokenizer.fingerprint
    assert after.tensors.keys() == before.tensors.keys()
    for key, tensor in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[key].read(), tensor.read(), err_msg=key)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == CONFIGS[name]["model_type"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@EVERY_FAMILY
def test_streamed_and_read_whole_are_one_model(name, tmp_path):
    write_folder(tmp_path / "hf", name)
    convert(tmp_path / "hf", tmp_path / "model")
    streamed, whole = load_model(tmp_path / "model"), import_model(tmp_path / "hf")
    assert streamed.config == whole.config
    assert streamed.provenance == whole.provenance
    jax.tree.map(np.testing.assert_array_equal, streamed.params, whole.params)


@of("mixtral")
def test_several_files_are_written_and_read(folder, tmp_path):
    convert(folder, tmp_path / "model")
    files = export_model(tmp_path / "model", tmp_path / "out", max_file_bytes=20_000)
    assert INDEX_FILE in files
    sizes = [(tmp_path / "out" / file).stat().st_size for file in files if file.endswith(".safetensors")]
    assert len(sizes) > 2
    assert max(sizes) < 25_000
    again = import_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, load_model(tmp_path / "model").params)


@of("llama")
def test_bfloat16_out_and_in(folder, tmp_path):
    convert(folder, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
    assert {tensor.code for tensor in open_tensors(tmp_path / "out").values()} == {"BF16"}
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), load_model(tmp_path / "model").params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), import_model(tmp_path / "out").params, rounded)


@of("mistral")
def test_a_window_is_the_longest_sequence(folder):
    assert import_model(folder).transformer.max_positions == 24


@of("llama")
def test_rope_of_older_folders(folder):
    change(folder, rope_parameters=None, rope_theta=1e6, rope_scaling=CONFIGS["llama-3"]["rope_parameters"] | {})
    config = import_model(folder).transformer
    assert config.rope_scaling.factor == 8.0
    change(folder, rope_scaling=None)
    assert import_model(folder).transformer.rope_base == 1e6


@of("gpt2")
def test_names_without_prefix_masks_and_tied_copies(folder):
    plain = import_model(folder).params

    def edit(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    change_tensors(folder, edit)
    jax.tree.map(np.testing.assert_array_equal, import_model(folder).params, plain)
    change_tensors(folder, lambda tensors: tensors.__setitem__("lm_head.weight", tensors["lm_head.weight"] + 1))
    with pytest.raises(DataError, match=r"lm_head\.weight must equal wte\.weight, which it is tied to"):
        import_model(folder)


REFUSED = [
    ("llama", {"model_type": "falcon"}, "model_type='falcon' is not supported; llama, mistral, qwen2, mixtral, gpt2"),
    ("llama", {"attention_bias": True}, "attention_bias=True is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: 'factor' is missing"),
    ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok=1 is not supported"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("t5", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets=16"),
    ("t5", {"feed_forward_proj": "odd-relu"}, "feed_forward_proj='odd-relu'"),
    ("t5", {"decoder_start_token_id": 3}, "decoder_start_token_id=3"),
    ("qwen2", {"vocab_size": 40}, "expected [40, 16]"),
]


@pytest.mark.parametrize(("folder", "values", "message"), REFUSED, indirect=["folder"])
def test_refuses_what_it_would_compute_otherwise(folder, values, message):
    change(folder, **values)
    with pytest.raises(DataError) as caught:
        import_model(folder)
    assert message in str(caught.value)


@of("llama")
def test_a_tensor_that_is_not_there_or_not_known(folder, tmp_path):
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(DataError, match=r"tensor lm_head\.weight of shape \[300, 16\] is missing"):
        convert(folder, tmp_path / "model")
    change_tensors(folder, lambda tensors: tensors.__setitem__("lm_head.weight", np.ones((300, 16), np.float32)))
    change_tensors(folder, lambda tensors: tensors.__setitem__("model.layers.2.x", np.ones(3, np.float32)))
    with pytest.raises(DataError, match=r"unexpected tensor model\.layers\.2\.x of shape \[3\]"):
        convert(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@of("llama")
def test_a_folder_of_the_bare_model_opens_without_an_output(folder, tmp_path):
    whole = import_model(folder)

    def edit(tensors):
        del tensors["lm_head.weight"]
        for key in list(tensors):
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    change_tensors(folder, edit)
    bare = import_model(folder)
    assert bare.transformer == headless(whole.transformer)
    jax.tree.map(np.testing.assert_array_equal, bare.params, headless_params(whole.params))
    convert(folder, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["LlamaModel"]
    assert set(open_tensors(tmp_path / "out")) == set(open_tensors(folder))


@of("llama-both-ways")
def test_one_that_reads_both_ways_is_written_as_such(folder, tmp_path):
    model = import_model(folder)
    assert model.transformer.kind == "encoder"
    convert(folder, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["is_causal"] is False


@of("llama")
def test_numbers_that_are_not_finite_leave_nothing_behind(folder, tmp_path):
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, np.nan))
    with pytest.raises(DataError, match=r"tensor model\.norm\.weight holds numbers that are not finite"):
        convert(folder, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@of("llama")
def test_pickles_only(folder):
    (folder / WEIGHTS_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pickled weights \(pytorch_model\.bin\), which can run any code"):
        import_model(folder)


@of("llama")
def test_a_tokenizer_in_another_format(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(DataError, match=r"only tokenizer\.model; make it with"):
        import_model(folder)


@of("llama")
def test_a_file_that_is_cut(folder):
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"not a whole safetensors file"):
        import_model(folder)


@of("llama")
def test_an_index_that_lies(folder, tmp_path):
    convert(folder, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", max_file_bytes=20_000)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    first = next(iter(index["weight_map"]))
    for file, message in (("../elsewhere.safetensors", "must be a name in the same folder"), ("no.st", "no such file")):
        changed = index | {"weight_map": index["weight_map"] | {first: file}}
        (tmp_path / "out" / INDEX_FILE).write_text(json.dumps(changed))
        with pytest.raises(DataError, match=message):
            import_model(tmp_path / "out")
    del index["weight_map"][first]
    (tmp_path / "out" / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"tensor {first} is said to be in no file"):
        import_model(tmp_path / "out")


@of("llama")
def test_a_layout_that_no_family_has(folder, tmp_path):
    card = import_model(folder)
    config = palm_config(num_layers=1, d_model=8, num_heads=2, head_dim=4, vocab_size=300, max_positions=16)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    model = ModelFolder(config=config, params=params, tokenizer=card.tokenizer, settings=None, provenance={})
    save_model(tmp_path / "palm", model)
    with pytest.raises(DataError, match=r"no family .* parallel=True \(not False\)"):
        export_model(tmp_path / "palm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@of("llama")
def test_what_is_there_is_not_replaced(folder, tmp_path):
    convert(folder, tmp_path / "model")
    with pytest.raises(UsageError, match="exists already"):
        export_model(tmp_path / "model", folder)


# Prints the peak of resident memory in bytes, after a small folder was read or written and after a large one was.
MEASURE = """
import sys
from pathlib import Path
from jaxscale.interop.huggingface import convert, export_model

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

run = {"import": convert, "export": lambda *paths: export_model(*paths, check="sizes")}[sys.argv[1]]
run(*sys.argv[2:4])
print(peak())
run(*sys.argv[4:6])
print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process")
@of("llama")
def test_one_tensor_is_in_memory_at_a_time(folder, tmp_path, monkeypatch):
    sizes = {"vocab_size": 32768, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    monkeypatch.setitem(CONFIGS, "large", CONFIGS["llama"] | sizes)
    write_folder(tmp_path / "large", "large")
    largest = 32768 * 512 * 4
    assert (tmp_path / "large" / WEIGHTS_FILE).stat().st_size > 4 * largest
    for way, source, out in (("import", "{}", "{}-model"), ("export", "{}-model", "{}-out")):
        paths = [str(tmp_path / name.format(kind)) for kind in ("hf", "large") for name in (source, out)]
        done = subprocess.run([sys.executable, "-c", MEASURE, way, *paths], capture_output=True, text=True, check=True)
        before, after = map(int, done.stdout.split())
        assert largest / 2 < after - before < 3 * largest


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, edit):
    tensors = dict(load_file(folder / WEIGHTS_FILE))
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
