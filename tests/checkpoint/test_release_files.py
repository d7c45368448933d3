"""A release as people have it: the tree of the guide, tar parts as downloaded, names with prefixes; what is wrong is named."""

from __future__ import annotations

import io
import os
import shutil
import tarfile

import numpy as np
import pytest

from pangu_lab.checkpoint import load_weights
from pangu_lab.checkpoint.convert import convert_checkpoint
from pangu_lab.checkpoint.source import tokenizer_folder
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import initial_weights
from pangu_lab.presets import preset
from tests.checkpoint.test_convert import SETTINGS, same, sharded


@pytest.fixture(scope="module")
def weights():
    return initial_weights(preset("debug").model, 3)


@pytest.fixture(scope="module")
def flat(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    sharded(folder, weights)
    return folder


@pytest.fixture
def tree(flat, debug_data, tmp_path):
    """The release as downloaded, in the guide's folders: eight shards in two tar parts, tables with the size before them."""
    top = tmp_path / "ckpts"
    for name in ("checkpoint_file", "strategy_load_ckpt"):
        (top / name).mkdir(parents=True)
    shutil.copytree(debug_data / "tokenizer", top / "tokenizer")
    for part in range(2):
        with tarfile.open(top / "checkpoint_file" / f"2.6B_part{part}", "w") as archive:
            for rank in range(4 * part, 4 * part + 4):
                archive.add(flat / f"filerted_{rank}.ckpt", f"2.6B/filerted_{rank}.ckpt")
    for number, table in enumerate(sorted(flat.glob("*.npy"))):
        name = f"2.6B_{table.name if number else table.stem}"
        shutil.copy(table, top / "checkpoint_file" / name)
    shutil.copy(flat / "pangu_strategy.ckpt", top / "strategy_load_ckpt" / "strategy.ckpt")
    return top


def converted(source, out):
    return convert_checkpoint(source, out, overrides=SETTINGS)


def test_the_tree_of_a_release_is_read_from_its_tar_parts_bit_for_bit_and_nothing_is_unpacked(tree, weights, tmp_path):
    before = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    converted(tree, tmp_path / "out")
    same(load_weights(tmp_path / "out")[0], weights)
    assert tokenizer_folder(tmp_path / "out") == tmp_path / "out" / "tokenizer"
    assert sorted(path.relative_to(tree) for path in tree.rglob("*")) == before
    converted(tree / "checkpoint_file", tmp_path / "again")  # its strategy and tokenizer lie beside it
    same(load_weights(tmp_path / "again")[0], weights)


@pytest.mark.parametrize("spelling", ["filtered", "filitered"])
def test_shards_are_found_under_every_spelling_there_is(flat, weights, spelling, tmp_path):
    shutil.copytree(flat, tmp_path / "source")
    for path in (tmp_path / "source").glob("filerted_*"):
        path.rename(path.with_name(path.name.replace("filerted", spelling)))
    converted(tmp_path / "source", tmp_path / "out")
    same(load_weights(tmp_path / "out")[0], weights)


def test_of_two_strategies_the_one_that_fits_the_shards_is_taken(tree, data_folder, tmp_path):
    strategies = data_folder / "released"
    shutil.copy(strategies / "pangu_alpha_13B_cktp_strategy.ckpt", tree / "strategy_load_ckpt")
    converted(tree, tmp_path / "out")
    (tree / "strategy_load_ckpt" / "strategy.ckpt").unlink()
    with pytest.raises(InputError, match="504 of 512 shards missing"):
        converted(tree, tmp_path / "other")


def archive(path, *members):
    with tarfile.open(path, "w") as made:
        for member, content in members:
            made.addfile(member, io.BytesIO(content))


def link(name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member, b""


def header(name, size, kind=tarfile.REGTYPE, pax=()):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.pax_headers = size, kind, dict(pax)
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def raw(path, headers):
    path.write_bytes(headers + b"x" * 512 + bytes(1024))


def cut_before_the_second_header(path):
    """What remains ends within the header of the second shard."""
    with tarfile.open(path) as made:
        second = made.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[: second + 100])


def named(name):
    return tarfile.TarInfo(name), b""


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda parts: archive(parts / "2.6B_part1", link("filerted_4.ckpt", tarfile.SYMTYPE)),
            "link or device 'filerted_4.ckpt'",
        ),
        (lambda parts: archive(parts / "2.6B_part1", link("filerted_4.ckpt", tarfile.LNKTYPE)), "link or device"),
        (lambda parts: archive(parts / "2.6B_part1", named("../filerted_4.ckpt")), "outside its folder"),
        (lambda parts: archive(parts / "2.6B_part1", named("/filerted_4.ckpt")), "outside its folder"),
        (
            lambda parts: archive(parts / "2.6B_part1", named("filerted_4.ckpt")),
            "7 of 8|3 of 8|filerted_4.ckpt: is empty",
        ),
        (lambda parts: (parts / "2.6B_part1").unlink(), "4 of 8 shards missing: filerted_4.ckpt.*part0 to"),
        (
            lambda parts: (parts / "2.6B_part1").write_bytes((parts / "2.6B_part1").read_bytes()[:50_000]),
            "2.6B_part1: .*again",
        ),
        (lambda parts: (parts / "2.6B_part1").write_bytes(b"\x1f\x8b" + bytes(600)), "not a whole tar file"),
        (lambda parts: cut_before_the_second_header(parts / "2.6B_part1"), "no header at byte"),
        (
            lambda parts: raw(parts / "2.6B_part1", header("filerted_4.ckpt", 512, pax={"size": "9" * 30})),
            "not a whole tar file",
        ),
        (
            lambda parts: raw(parts / "2.6B_part1", header("filerted_4.ckpt", 512, pax={"size": "-1024"})),
            "not a whole tar file",
        ),
        (lambda parts: raw(parts / "2.6B_part1", header("LongLink", 1 << 45, b"L")), "not a whole tar file"),
        (
            lambda parts: raw(parts / "2.6B_part1", 3000 * (header("LongLink", 5, b"L") + bytes(512))),
            "not a whole tar file",
        ),
        (
            lambda parts: raw(parts / "2.6B_part1", header("filerted_4.ckpt", 512, pax={"GNU.sparse.map": "0,a"})),
            "not a whole",
        ),
        (lambda parts: raw(parts / "2.6B_part1", header("filerted_4.ckpt", 512, b"S")), "has holes"),
        (lambda parts: archive(parts / "2.6B_part1", link("a\n\x1b[31m", tarfile.SYMTYPE)), r"'a\\n\\x1b\[31m'"),
        (
            lambda parts: [(parts / "2.6B_part1").unlink(), os.mkfifo(parts / "filerted_4.ckpt")],
            "4 of 8 shards missing",
        ),
        (lambda parts: [(parts / "2.6B_part1").unlink(), (parts / "filerted_4.ckpt").mkdir()], "4 of 8 shards missing"),
        (lambda parts: shutil.copy(parts / "2.6B_part0", parts / "2.6B_part2"), "both shard 0"),
        (lambda parts: np.save(parts / "13B_word_embedding.npy", np.zeros((2, 2))), "both the table of 'word'"),
    ],
)
def test_what_is_wrong_with_a_part_is_named_and_nothing_is_written(tree, damage, said, tmp_path):
    damage(tree / "checkpoint_file")
    with pytest.raises(InputError, match=said) as caught:
        converted(tree, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
