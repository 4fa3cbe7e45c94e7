"""Where students start: the teacher's own layers, or another encoder, with its head and its tokenizer."""

import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from retrieval.encode import encode_texts
from retrieval.towers.distillation.student import Student, start_student
from retrieval.towers.retriever_folder import join_towers, read_retriever, save_retriever, with_query_tower
from tests.retrieval.towers.distillation.small_distillation import MESH, small_encoder, small_retriever

TEACHER = small_retriever(num_layers=5)
OTHER_TOKENIZER = Tokenizer.train_wordpiece(["quite other words", "and quite other pieces"] * 3, 60)


def write(path, encoder):
    save_retriever(
        path,
        join_towers(
            query=encoder, document=encoder, shared=True, score="cosine" if encoder.config.normalize else "dot"
        ),
    )
    return str(path)


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        (Student(num_layers=2), [0, 1]),
        (Student(num_layers=3, layer_step=2), [0, 2, 4]),
        (Student(num_layers=5), [0, 1, 2, 3, 4]),
        (Student(num_layers=1, layer_step=None), [0]),
        (Student(num_layers=2, layer_step=None), [0, 2]),
        (Student(num_layers=3, layer_step=None), [0, 1, 3]),
        (Student(num_layers=5, layer_step=None), [0, 1, 2, 3, 4]),
    ],
)
def test_a_student_of_the_teachers_layers_has_them_and_all_else(student, layers):
    started = start_student(student, TEACHER, 16, seed=0)
    deep, shallow = TEACHER.query.params["transformer"], started.params["transformer"]
    np.testing.assert_array_equal(
        shallow["layers"]["mlp"]["up"]["kernel"], deep["layers"]["mlp"]["up"]["kernel"][layers]
    )
    assert shallow["embeddings"] is deep["embeddings"]
    assert started.config.transformer.num_layers == len(layers)
    assert started.config.max_length == 16
    assert started.tokenizer is TEACHER.query.tokenizer


def test_all_layers_are_the_teacher():
    started = start_student(Student(num_layers=5), TEACHER, 48, seed=0)
    texts = ["dada fifi", "gogo nunu"]
    ours, theirs = (encode_texts(encoder, texts, MESH).vectors for encoder in (started, TEACHER.query))
    np.testing.assert_array_equal(ours, theirs)


def test_more_layers_than_the_teacher_has_are_refused():
    with pytest.raises(UsageError, match="asks for layer 6 of a teacher that has 5; use at most 5"):
        start_student(Student(num_layers=6), TEACHER, 16, seed=0)
    with pytest.raises(UsageError, match="asks for layer 7 of a teacher that has 5; use at most 3"):
        start_student(Student(num_layers=4, layer_step=2), TEACHER, 16, seed=0)
    with pytest.raises(UsageError, match="asks for layer 6 of a teacher that has 5; use at most 5"):
        start_student(Student(num_layers=6, layer_step=None), TEACHER, 16, seed=0)


def test_another_encoder_gets_a_head_to_the_space_and_keeps_its_tokenizer(tmp_path):
    other = small_encoder(num_layers=1, d_model=16, tokenizer=OTHER_TOKENIZER, pooling="cls", prefix="ask: ")
    path = write(tmp_path / "other", other)
    started = start_student(Student(init_from=path), TEACHER, 16, seed=3)
    assert started.params["projection"]["kernel"].shape == (16, 32)
    assert started.config.num_dims == TEACHER.contract.num_dims
    assert (started.config.pooling, started.config.prefix) == ("cls", "ask: ")
    assert started.tokenizer.fingerprint == OTHER_TOKENIZER.fingerprint
    again, otherwise = (start_student(Student(init_from=path), TEACHER, 16, seed=seed) for seed in (3, 4))
    heads = [encoder.params["projection"]["kernel"] for encoder in (started, again, otherwise)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).any()


def test_a_student_with_its_own_tokenizer_is_kept_and_read_with_it(tmp_path):
    other = small_encoder(num_layers=1, d_model=16, tokenizer=OTHER_TOKENIZER)
    started = start_student(Student(init_from=write(tmp_path / "other", other)), TEACHER, 16, seed=0)
    save_retriever(tmp_path / "joined", with_query_tower(TEACHER, started))
    read = read_retriever(tmp_path / "joined")
    assert read.query.tokenizer.fingerprint == OTHER_TOKENIZER.fingerprint
    assert read.document.tokenizer.fingerprint == TEACHER.document.tokenizer.fingerprint
    texts = ["quite other words", "dada"]
    for side in ("query", "document"):
        expected = started if side == "query" else TEACHER.document
        ours, theirs = (encode_texts(encoder, texts, MESH).vectors for encoder in (read.encoder(side), expected))
        np.testing.assert_array_equal(ours, theirs)


def test_a_student_takes_the_spaces_normalisation(tmp_path):
    path = write(tmp_path / "dot", small_encoder(num_layers=1, normalize=False))
    assert start_student(Student(init_from=path), TEACHER, 16, seed=0).config.normalize


def test_what_does_not_fit_the_space_is_refused(tmp_path):
    path = write(tmp_path / "projected", small_encoder(num_layers=1, d_model=16, projection_dim=8))
    with pytest.raises(UsageError, match="has a projection to 8 dims, but the teacher's space has 32"):
        start_student(Student(init_from=path), TEACHER, 16, seed=0)
    with pytest.raises(UsageError, match="ends at 64 tokens, but the student has max_positions=48"):
        start_student(Student(num_layers=1), TEACHER, 64, seed=0)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (Student(), "nothing to start from; add `--student.num-layers N`"),
        (Student(num_layers=1, init_from="x"), "brings its own layers, but student.num_layers=1 is given too"),
    ],
)
def test_a_student_says_once_where_it_starts(student, said):
    with pytest.raises(UsageError) as refusal:
        student.check()
    assert said in str(refusal.value)


def test_no_layers_are_refused():
    with pytest.raises(UsageError, match=r"student\.num_layers=0 must be at least 1"):
        Student(num_layers=0)
