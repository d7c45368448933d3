"""Where tokenizers come from, and saving them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer
from pangu_lab.tokenizer.load import released_vocabulary


def test_a_saved_tokenizer_is_whole_anywhere(trained: Tokenizer, tmp_path: Path, text: str) -> None:
    trained.save(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "elsewhere")
    again = load_tokenizer(tmp_path / "elsewhere")
    assert again.describe() == trained.describe()
    assert again.encode(text) == trained.encode(text)


def test_gpt2_is_saved_and_loaded(gpt2_folder: Path, tmp_path: Path, text: str) -> None:
    gpt2 = load_tokenizer(gpt2_folder)
    gpt2.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", eod="<eot>", pad="<pad>")
    assert again.describe() == gpt2.describe() and again.encode(text) == gpt2.encode(text)


def test_a_saved_choice_of_pieces_is_kept_unless_another_is_given(trained: Tokenizer, tmp_path: Path) -> None:
    load_tokenizer(released_vocabulary(), eod=6, pad="<eod>").save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.eod_id, again.pad_id) == (6, 8)
    assert load_tokenizer(tmp_path / "saved", eod="<eot>").eod_id == 9


def test_a_model_file_or_a_folder_with_one(tmp_path: Path) -> None:
    shutil.copy(released_vocabulary(), tmp_path / "any.model")
    expected = load_tokenizer("pangu").fingerprint
    assert load_tokenizer("jieba").fingerprint == expected  # as the reference calls it
    assert load_tokenizer(tmp_path / "any.model").fingerprint == expected
    assert load_tokenizer(tmp_path).fingerprint == expected


def test_saving_never_overwrites(trained: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        trained.save(tmp_path)


def test_damage_is_named(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    model = tmp_path / "saved" / "vocab.model"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError, match="vocab.model.*sha256 differs"):
        load_tokenizer(tmp_path / "saved")
    model.unlink()
    with pytest.raises(InputError, match="vocab.model: missing"):
        load_tokenizer(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        load_tokenizer(tmp_path / "saved")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(InputError, match="no tokenizer in it"):
        load_tokenizer(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="bad.model: not a SentencePiece vocabulary"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(InputError, match="empty.model: not a SentencePiece vocabulary"):
        load_tokenizer(tmp_path / "empty.model")


def test_the_metadata_is_plain_json(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved", {"note": "测试"})
    metadata = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert metadata["fingerprint"] == trained.fingerprint and metadata["note"] == "测试"
    assert (metadata["eod"], metadata["eod_id"], metadata["pad_id"]) == ("<eot>", 9, 6)


def test_importing_and_loading_bring_in_nothing_heavy() -> None:
    code = (
        "import sys, pangu_lab.tokenizer, pangu_lab.data\n"
        "assert not {'sentencepiece', 'tokenizers', 'jieba', 'mindspore'} & set(sys.modules)\n"
        "pangu_lab.tokenizer.load_tokenizer('pangu').encode('今天')\n"
        "assert not {'pcl_pangu', 'jieba', 'mindspore', 'tokenizers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_prepare_takes_the_references_spellings(
    gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("春天来了，花开了。\n" * 40, encoding="utf-8")
    line = ["prepare", "--input", str(tmp_path / "a.txt"), "--seq-length", "9"]
    assert main([*line, "--tokenizer", "jieba", "--eot", "6", "--out", str(tmp_path / "jieba")]) == 0
    assert load_tokenizer(tmp_path / "jieba" / "tokenizer").eod_id == 6
    gpt = ["--tokenizer", "gpt", "--vocab", str(gpt2_folder)]
    assert main([*line, *gpt, "--out", str(tmp_path / "gpt")]) == 0
    assert load_tokenizer(tmp_path / "gpt" / "tokenizer").kind == "gpt2"
    capsys.readouterr()
    for half in (gpt[:2], gpt[2:]):
        assert main([*line, *half, "--out", str(tmp_path / "none")]) == 2
        assert "--vocab DIR goes with --tokenizer gpt" in capsys.readouterr().err
