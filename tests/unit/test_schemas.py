"""JSON files that are read as dataclasses: what is said of one that is none."""

import json
from dataclasses import dataclass, field

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from edgeprune.errors import RunError
from edgeprune.files.schemas import Listed, checked, load, parse


@checked_dataclass(frozen=True)
class Inner:
    """With a range."""

    count: int = Field(ge=1)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """As files have it."""

    inner: Inner
    share: float = 0.5
    more: dict[str, float] = field(default_factory=dict)


GOOD = {"inner": {"count": 2, "names": ["a", "b"]}, "share": 0.25, "more": {"x": 1.5}}
WHOLE = Outer(Inner(2, ("a", "b")), 0.25, {"x": 1.5})


def test_content_of_exactly_its_fields_is_read(tmp_path):
    (tmp_path / "file").write_text(json.dumps(GOOD))
    assert checked(Outer, GOOD) == parse(Outer, GOOD) == load(Outer, tmp_path / "file", "a thing", RunError) == WHOLE
    assert checked(Outer, GOOD | {"else": 1}) == WHOLE  # which is passed over here alone
    assert checked(Listed, [["a"], []]).root == [["a"], []]


FAULTS = [
    (GOOD | {"share": "0.25"}, "in share: Input should be a valid number"),
    (GOOD | {"inner": {"count": 0, "names": []}}, "in inner/count: Input should be greater than or equal to 1"),
    (GOOD | {"inner": {"count": 2.0, "names": []}}, "in inner/count: Input should be a valid integer"),
    ([], "Input should be an object"),
    ({"share": 1.0}, "in inner: Field required"),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_a_value_of_another_type_or_out_of_range_is_named_with_its_place(tmp_path, content, message):
    for read in (checked, parse):
        with pytest.raises(ValueError, match=f"^{message}$") as error:
            read(Outer, content)
        assert not isinstance(error.value, (TypeError, KeyError)) and "\n" not in str(error.value)
    (tmp_path / "file").write_text(json.dumps(content))
    with pytest.raises(RunError, match=f"^Expected a thing in '{tmp_path}/file'; it is none: {message}$"):
        load(Outer, tmp_path / "file", "a thing", RunError)


def test_three_faults_are_listed_and_no_more_in_so_many_characters():
    with pytest.raises(ValueError, match="valid") as error:
        checked(Outer, {"inner": {"count": "1", "names": [1, 2, 3]}, "share": None})
    said = str(error.value).split("; ")
    assert [part.split(":")[0] for part in said] == ["in inner/count", "in inner/names/0", "in inner/names/1"]
    with pytest.raises(ValueError, match="in more") as error:
        checked(Outer, {"inner": {"count": 1}, "share": 1.0, "more": {"x\n" * 200: "1"}})
    assert str(error.value).startswith("in more/x x x") and len(str(error.value)) == 300


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (GOOD | {"else": 1}, "else"),
        ({name: value for name, value in GOOD.items() if name != "share"}, "share"),
        (GOOD | {"inner": {"count": 2}}, "inner/names"),
        (GOOD | {"inner": GOOD["inner"] | {"a": 1, "b": 2}, "z": 3}, "inner/a, inner/b, z"),
        (GOOD | dict.fromkeys("zyxw", 1), "z, y, x"),
        (GOOD | {"share": 1, "long " * 20: 1}, "long long long long long long long long"),
        (GOOD | {"a\nb": 1}, "a b"),
    ],
)
def test_fields_beside_those_that_there_are_and_fields_that_lack_are_named(content, named):
    with pytest.raises(ValueError, match="it lacks") as error:
        parse(Outer, content)
    assert str(error.value) == f"it lacks, or has beside what it should: {named}"


def test_a_value_that_would_be_written_otherwise_is_named():
    @dataclass(frozen=True)
    class Rounded:
        inner: dict[str, float]

    content = {"inner": {"a": 1, "b": 10**17 + 1}}  # which no float is
    with pytest.raises(ValueError, match=r"^it lacks, or has beside what it should: inner/b$"):
        parse(Rounded, content)


def test_what_lacks_comes_before_what_would_be_written_otherwise():
    content = {"inner": GOOD["inner"], "more": {"a": 1, "b": 10**17 + 1}}
    with pytest.raises(ValueError, match=r"^it lacks, or has beside what it should: share, more/b$"):
        parse(Outer, content)


def test_what_is_nested_too_deeply_to_be_looked_at_is_said_to_be(monkeypatch):
    def too_deep(found):
        raise RecursionError

    monkeypatch.setattr("edgeprune.files.schemas.asdict", too_deep)
    with pytest.raises(ValueError, match=r"^it is nested too deeply$"):
        parse(Outer, GOOD)


def test_a_missing_file_is_an_error_of_the_type_that_was_asked_for(tmp_path):
    with pytest.raises(RunError, match=r"^Expected a thing; cannot read .*No such file"):
        load(Outer, tmp_path / "none", "a thing", RunError)
