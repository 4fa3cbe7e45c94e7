import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.records import Query
from retrieval.search.queries import read_queries
from tests.retrieval.tiny_retriever import write_corpus


def test_json_lines_and_tab_separated_lines(tmp_path):
    expected = [Query("a", "what is it"), Query("b", "why")]
    (tmp_path / "q.jsonl").write_text('{"_id": "a", "text": "what is it"}\n\n{"_id": "b", "text": "why", "more": 1}\n')
    (tmp_path / "q.tsv").write_text("a\twhat is it\nb\twhy\n")
    assert read_queries(tmp_path / "q.jsonl") == read_queries(tmp_path / "q.tsv") == expected


def test_a_folder_gives_all_its_queries_or_those_of_a_split(tmp_path):
    write_corpus(tmp_path / "c", num_docs=8, num_queries=4)
    assert [q.id for q in read_queries(tmp_path / "c")] == ["q0", "q1", "q2", "q3"]
    assert [q.id for q in read_queries(tmp_path / "c", "test")] == ["q2", "q3"]
    with pytest.raises(DataError, match="has no split 'tset'; it has dev, test"):
        read_queries(tmp_path / "c", "tset")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "q.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            r"q.jsonl:2: the query 'a' was given before",
        ),
        ("q.jsonl", '{"_id": "a", "text": "x"\n', r"q.jsonl:1: not JSON: .*; expected \{\"_id\": \.\.\., \"text\""),
        ("q.jsonl", '{"id": "a", "text": "x"}\n', r'q.jsonl:1: expected an object with "_id" and "text"'),
        ("q.jsonl", '{"_id": 3, "text": "x"}\n', r"q.jsonl:1: _id and text must be strings"),
        ("q.jsonl", '{"_id": "a", "text": " "}\n', r"the query 'a' is empty; 1 of 1 are"),
        ("q.jsonl", "\n", r"holds no queries"),
        ("q.tsv", "a what\n", r"q.tsv:1: has no tab"),
        ("q.tsv", " \twhat\n", r"q.tsv:1: id"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_queries(tmp_path / name)


def test_a_path_that_is_not_there_and_a_split_of_a_file(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*nothing"):
        read_queries(tmp_path / "nothing")
    (tmp_path / "q.tsv").write_text("a\twhat\n")
    with pytest.raises(UsageError, match="split='dev' is for a BEIR folder"):
        read_queries(tmp_path / "q.tsv", "dev")
