"""What the readmes and the notebooks tell a reader to type, open or look at: it parses, and it is there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from pangu_lab import cli
from pangu_lab.presets import PRESETS, preset
from tests.benchmarks.__main__ import PARTS
from tests.test_cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
GUIDES = ("docs/guide.md", "docs/guide.zh-CN.md")
TEXTS = (
    *READMES,
    *GUIDES,
    "CONTRIBUTING.md",
    "SECURITY.md",
    "pangu_lab/ops/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("notebooks/*.ipynb")),
)


def prose(name: str) -> str:
    """The text of a readme, or of a notebook's cells of prose."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(text: str) -> list[str]:
    """The lines of every block of code."""
    found = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.strip() for block in found for line in block.splitlines()]


def spans(text: str) -> list[str]:
    """What stands as code in the middle of a sentence."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def refusal(line: str) -> str:
    """What the command line says of ``pangu-lab …``; nothing when it takes it. A verb without options only names it."""
    words = shlex.split(line.removesuffix(" …"), comments=True)[1:]  # "…" at the end: and so on
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.build_parser().parse_args(words if any(word.startswith("-") for word in words) else [*words, "--help"])
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    return ""


def wrong(text: str) -> list[str]:
    """Commands that cannot be run; one in the middle of a sentence may leave out what it is not about."""
    lines = [(line, refusal(line)) for line in blocks(text) if line.startswith("pangu-lab ")]
    parts = [(line, refusal(line)) for line in spans(text) if line.startswith("pangu-lab ")]
    open_ended = ("arguments are required", "expected one argument", "expected at least one argument")
    return [line for line, said in lines if said] + [
        line for line, said in parts if said and not any(words in said for words in open_ended)
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_parses(name):
    assert wrong(prose(name)) == []


def test_the_check_of_commands_sees_wrong_ones():
    assert all(sum(line.startswith("pangu-lab ") for line in blocks(prose(name))) > 20 for name in GUIDES)
    text = (
        "`pangu-lab plan`, `pangu-lab nonsense`, `pangu-lab export --tensor-parallel 2` and\n"
        "```bash\npangu-lab train --wrong 1 --run x  # why\n```\n`pangu-lab serve --bundle …`"
    )
    assert wrong(text) == ["pangu-lab train --wrong 1 --run x  # why", "pangu-lab nonsense"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_make_target_exists(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    text = prose(name)
    for line in (*blocks(text), *spans(text)):
        if words := re.match(r"make ([a-z-]+)(?: ARGS=(\S+))?", line):
            assert words[1] in targets, line
            assert words[1] != "bench" or words[2] in (None, "--keep", *PARTS), line


def anchor(heading: str) -> str:
    """What a heading is called in an address: as GitHub does it, small, without punctuation, blanks as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings_of(text: str) -> set[str]:
    """The addresses of all headings."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", READMES)
def test_the_front_page_is_short(name):
    assert prose(name).count("\n") <= 150


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_and_picture_is_there(name):
    text = prose(name)
    headings = headings_of(text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, place = target.partition("#")
        if not path:
            assert place in headings, target
        elif not target.startswith("http"):
            found = (ROOT / name).parent / path
            assert found.exists(), target
            assert not place or place in headings_of(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", GUIDES)
def test_the_true_size_of_every_preset_is_told(name):
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) × (\d+)[,，] ?(\d+) \| ([\d,]+) \|", prose(name), re.MULTILINE)
    told = {row[0]: row[1:] for row in rows}
    assert set(told) == set(PRESETS) - {"self_define"}
    for key, (layers, hidden, heads, parameters) in told.items():
        model = preset(key).model
        assert (layers, hidden, heads) == (str(model.num_layers), str(model.hidden_size), str(model.num_heads))
        assert parameters == f"{model.num_parameters:,}"


@pytest.mark.parametrize("name", GUIDES)
def test_every_verb_is_told(name):
    told = re.findall(r"^\| (`[a-z `、,]+`) \|", prose(name), re.MULTILINE)
    words = set(re.findall(r"`([a-z ]+)`", " ".join(told)))
    assert {verb.split()[0] for verb in VERBS} <= {word.split()[0] for word in words}


@pytest.mark.parametrize("names", [READMES, GUIDES])
def test_both_languages_show_the_same_commands(names):
    blocks = [re.findall(r"^(?:pangu-lab|make) [^#\n]*", prose(name), re.MULTILINE) for name in names]
    assert blocks[0] and [line.strip() for line in blocks[0]] == [line.strip() for line in blocks[1]]
