"""Reading JSON and YAML that came from outside: limits, no ambiguity, schemas; one line for each fault."""

from __future__ import annotations

import json

import pytest

from pangu_lab.config import parse_overrides
from pangu_lab.errors import InputError
from pangu_lab.presets import load_yaml, preset
from pangu_lab.reading import DEPTH, YAML_LIMIT, checked, parse_json, parse_yaml, read_json
from pangu_lab.schema import Count, FileName, Schema, Sha256


def test_a_missing_json_file_is_named_with_what_it_is(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: the data set's description is not there"):
        read_json(tmp_path / "gone.json", "the data set's description")


@pytest.mark.parametrize("content", [b"{half", b"\xff\xfe\x00", b""])
def test_damaged_json_is_the_users_to_mend(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="a.json: the description is not readable JSON") as caught:
        read_json(tmp_path / "a.json", "the description")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        ('{"x": [{"a": 1, "a": 1}]}', "the key 'a' stands"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested more than 32 levels deep"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\udc00": 1}', "half a surrogate pair"),
    ],
)
def test_ambiguous_and_boundless_json_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_json(text, "a.json: it")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a.json: it is not readable JSON (")


def test_json_within_the_limits_comes_back_as_it_is():
    value = {"a": [1, 2.5, None, True, {"标题": "盘古 😀"}], "deep": json.loads("[" * 30 + "]" * 30)}
    assert parse_json(json.dumps(value), "it") == value  # written with surrogate pairs
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "it") == value


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    with pytest.raises(InputError, match="a.json: it is larger than 1 KiB"):
        read_json(tmp_path / "a.json", "it", limit=1024)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"it cannot be read \(Is a directory\)"):
        read_json(tmp_path, "it")
    with pytest.raises(InputError, match="cannot be read"):
        read_json("a\0b", "it")


# --------------------------------------------------------------------------------------------------------- schemas


class Part(Schema):
    name: FileName
    sha256: Sha256 | None = None


class Whole(Schema):
    number: Count
    share: float = 0.0
    parts: list[Part] = []
    by_name: dict[str, Part] = {}


GOOD = {
    "number": 3,
    "share": 1,
    "parts": [{"name": "a"}],
    "by_name": {"x": {"name": "b", "sha256": "0" * 64}},
    "newer": [1],
}


def test_what_fits_comes_back_itself_with_what_the_schema_does_not_name():
    assert checked(GOOD, Whole, "a.json") is GOOD


@pytest.mark.parametrize(
    "change,message",
    [
        ({"number": "3"}, "number is '3'; it should be a valid integer"),
        ({"number": True}, "number is True"),
        ({"number": -1}, "number is -1; it should be greater than or equal to 0"),
        ({"number": 10**300}, r"number is 1000.*characters\)"),
        ({"share": "1"}, "share is '1'; it should be a valid number"),
        ({"parts": {}}, "parts is {}"),
        ({"parts": [{"name": "../x"}]}, r"parts\[0\].name is '../x'"),
        ({"parts": [{}]}, r"says nothing of parts\[0\].name"),
        ({"parts": ["a"]}, r"parts\[0\] is 'a'; it should be an object"),
        ({"by_name": {"x": {"name": "b", "sha256": "0"}}}, "by_name.x.sha256 is '0'"),
        ({"parts": ["x" * 999]}, "999|1001 characters"),
    ],
)
def test_the_first_field_that_does_not_fit_is_named_with_what_stands_there(change, message):
    with pytest.raises(InputError, match=message) as caught:
        checked({**GOOD, **change}, Whole, "a.json", "make it again")
    text = str(caught.value)
    assert text.startswith("a.json: ") and text.endswith(": make it again") and "\n" not in text and len(text) < 300


def test_a_value_that_is_no_object_is_refused():
    with pytest.raises(InputError, match=r"a.json: it should be an object, not \[1\]"):
        checked([1], Whole, "a.json")


# ------------------------------------------------------------------------------------------------------------ YAML


@pytest.mark.parametrize(
    "text,message",
    [
        ("[" * 5000, "nested|nesting"),
        ("{a: " * 40 + "1" + "}" * 40, "nested more than 32 levels deep, line 1"),
        ("- " * 40 + "1", "nested more than 32"),
        ("a: &x 1\nb: *x", r"the alias \*x in line 2: write the value out"),
        ("a: &a [*a]", "alias"),
        ("a: !!python/name:os.system", "the tag tag:yaml.org,2002:python/name:os.system in line 1"),
        ('a: !!int ""', "the tag"),
        ("a: 1\na: 2", "the key 'a' stands there twice"),
        ("? [1]\n: 2", r"the key \[1\] is no name"),
        ("1.5: 2", "the key 1.5 is no name"),
        ("a: 2001-99-99", "month"),
        ("a: [1", "did not find expected"),
        ("9" * 5000, "digits"),
    ],
)
def test_yaml_that_no_configuration_needs_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_yaml(text, "a.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a.yaml: not readable as YAML (")


def test_aliases_of_aliases_do_not_grow(tmp_path):
    """A billion laughs: nine lines that would be ten billion values when they are shown."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="alias"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "content,message",
    [
        (b"#" * (YAML_LIMIT + 1), "larger than 64 KiB"),
        (b"model: \xff", "not readable as YAML"),
        (b"1: 2", "unknown setting '1'"),
        (b"model: {num_layers: 1000000000}", "model.num_layers=1000000000 must be between 2 and 4096"),
        (b"[]", "must hold sections"),
    ],
)
def test_a_configuration_that_cannot_be_one_is_refused(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_yaml(tmp_path / "a.yaml")


def test_ids_are_keys_and_a_mark_of_utf8_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes("\ufeffsampling: {logit_bias: {5: -1.5}}".encode())
    assert load_yaml(tmp_path / "a.yaml", preset("debug")).sampling.logit_bias == ((5, -1.5),)


def test_a_setting_of_the_command_line_is_read_in_the_same_way():
    assert parse_overrides(["train.steps=10", "sampling.stop=[a, b]"]) == {
        "train.steps": 10,
        "sampling.stop": ["a", "b"],
    }
    for text in ("[" * 5000, "&a [*a]", "{a: 1, a: 2}"):
        with pytest.raises(InputError, match="--set train.steps="):
            parse_overrides([f"train.steps={text}"])
