"""Import of BERT folders: values computed by transformers, settings, and one clear message for each thing wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxscale.errors import DataError
from jaxscale.interop.huggingface import import_model
from jaxscale.nn import functional
from tests.shared_data import shared_path

TOKENS = [[101, 7592, 2088, 2003, 1037, 3231, 102, 0, 0], [101, 2054, 2515, 1996, 4937, 4521, 2007, 5093, 102]]
TOKEN_TYPES = [[0, 0, 0, 0, 1, 1, 1, 0, 0], [0] * 9]
# Hidden states by transformers 5.23.0 and torch 2.13.0 (CPU) in the environment of locks/peers.txt, made by
#   hidden = BertModel.from_pretrained(DIR, attn_implementation="eager").eval()(
#       input_ids=TOKENS, attention_mask=[1] * 7 + [0, 0] and [1] * 9, token_type_ids=...).last_hidden_state
GOLDEN = {
    "first": [-0.67733943, 0.52344292, -1.5682101, -1.3426577, 1.8704803, -0.59419972],
    "last of a padded row": [-0.080660217, -2.4413724, -0.42789969, -1.3329107, -0.92697817, -0.70293123],
    "last of a full row": [0.90889233, -0.8532185, -0.53694159, 1.6714891, -0.47994679, -0.21894373],
    "with token types": [-0.46553761, -0.8528102, -1.5181644, -0.22848393, -0.29724514, 0.89504701],
}


def test_bert_tiny_equals_transformers():
    model = import_model(shared_path("models/bert-tiny-bleurt"))
    tokens = jnp.asarray(TOKENS, jnp.int32)
    apply = jax.jit(functional.apply, static_argnums=0)
    hidden = apply(model.config, model.params, tokens, tokens != 0)
    typed = apply(model.config, model.params, tokens, tokens != 0, token_types=jnp.asarray(TOKEN_TYPES, jnp.int32))
    got = {
        "first": hidden[0, 0, :6],
        "last of a padded row": hidden[0, 6, -6:],
        "last of a full row": hidden[1, 8, 60:66],
        "with token types": typed[0, 4, :6],
    }
    for name, expected in GOLDEN.items():
        np.testing.assert_allclose(got[name], expected, atol=2e-5, err_msg=name)
    assert float(jnp.abs(hidden[1]).sum()) == pytest.approx(969.15766, rel=1e-5)
    assert model.settings is None
    assert model.tokenizer.encode_batch(["hello world is a test"], 16).ids[0].tolist() == TOKENS[0][:7]


D, H, F, V, P = 8, 2, 12, 7, 16


@pytest.fixture
def folder(tmp_path):
    """A whole folder in the layout of sentence-transformers, two layers."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (V, D),
        "embeddings.position_embeddings.weight": (P, D),
        "embeddings.token_type_embeddings.weight": (2, D),
        "embeddings.LayerNorm.weight": (D,),
        "embeddings.LayerNorm.bias": (D,),
        "pooler.dense.weight": (D, D),
    }
    for index in range(2):
        at = f"encoder.layer.{index}"
        for name, shape in {
            "attention.self.query": (D, D),
            "attention.self.key": (D, D),
            "attention.self.value": (D, D),
            "attention.output.dense": (D, D),
            "intermediate.dense": (F, D),
            "output.dense": (D, F),
        }.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (D,), f"{at}.{name}.bias": (D,)}
    save_file({k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}, tmp_path / "model.safetensors")
    config = {
        "model_type": "bert",
        "hidden_size": D,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "intermediate_size": F,
        "vocab_size": V,
        "max_position_embeddings": P,
    }
    write(tmp_path / "config.json", config)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sea", "wind"]) + "\n")
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    write(tmp_path / "modules.json", modules)
    (tmp_path / "1_Pooling").mkdir()
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "ask: ", "passage": "say: "}})
    return tmp_path


def write(path, value):
    path.write_text(json.dumps(value))


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


def change_tensors(folder, edit):
    tensors = dict(load_file(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_reads_the_settings_of_sentence_transformers(folder):
    settings = import_model(folder).settings
    assert (settings.pooling, settings.normalize, settings.max_length) == ("cls", True, 12)
    assert (settings.query_prefix, settings.document_prefix) == ("ask: ", "say: ")


def test_reads_the_pooling_of_version_6_and_no_limit(folder):
    write(
        folder / "1_Pooling/config.json",
        {"embedding_dimension": D, "pooling_mode": "lasttoken", "include_prompt": True},
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": None})
    settings = import_model(folder).settings
    assert (settings.pooling, settings.max_length) == ("last", P)


def test_kernels_are_transposed_with_the_heads_apart(folder):
    params = import_model(folder).params
    tensors = load_file(folder / "model.safetensors")
    query = tensors["encoder.layer.1.attention.self.query.weight"]
    np.testing.assert_array_equal(params["layers"]["attention"]["query"]["kernel"][1, :, 1, 2], query[D // H + 2])
    out = tensors["encoder.layer.0.attention.output.dense.weight"]
    np.testing.assert_array_equal(params["layers"]["attention"]["out"]["kernel"][0, 1, 2], out[:, D // H + 2])


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_reads_float16_and_names_of_older_files(folder, prefix):
    plain = import_model(folder).params

    def edit(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[prefix + old] = tensors.pop(name).astype(np.float16)

    change_tensors(folder, edit)
    params = import_model(folder).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), params, plain)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def pop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pop("encoder.layer.1.output.dense.bias"), r"encoder\.layer\.1\.output\.dense\.bias of shape \[8\] is missing"),
        (put("encoder.layer.2.output.dense.bias", np.ones(D, np.float32)), r"unexpected tensor encoder\.layer\.2"),
        (put("embeddings.word_embeddings.weight", np.ones((V, 9), np.float32)), r"\[7, 9\], expected \[7, 8\]"),
        (
            put("embeddings.LayerNorm.bias", np.full(D, np.nan, np.float32)),
            "embeddings.LayerNorm.bias holds numbers that are not finite",
        ),
        (put("embeddings.LayerNorm.bias", np.ones(D, np.int32)), "embeddings.LayerNorm.bias is I32"),
    ],
    ids=["missing", "unexpected", "shape", "not finite", "dtype"],
)
def test_names_the_tensor_that_is_wrong(folder, edit, message):
    change_tensors(folder, edit)
    with pytest.raises(DataError, match=message):
        import_model(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type='roberta' is not supported"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("config.json", {"hidden_act": "mish"}, "hidden_act='mish'"),
        ("config.json", {"hidden_size": "8"}, "hidden_size='8', expected a int"),
        ("config.json", {"vocab_size": 6}, r"\[7, 8\], expected \[6, 8\]"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling cls.max is not supported"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt=False"),
    ],
)
def test_refuses_what_it_does_not_know(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(DataError, match=message):
        import_model(folder)


def test_refuses_modules_it_does_not_know(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.LayerNorm"
    write(folder / "modules.json", modules)
    with pytest.raises(DataError, match="Transformer, Pooling, LayerNorm"):
        import_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_names_the_file_that_is_missing_or_cut(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        import_model(folder)
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        import_model(folder)


def test_refuses_a_tokenizer_of_another_model(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.write("one\nmore\n")
    with pytest.raises(DataError, match="tokenizer has 9 tokens"):
        import_model(folder)


def test_refuses_a_folder_that_is_not_there(folder):
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="no such folder"):
        import_model(folder)
