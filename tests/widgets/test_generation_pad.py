"""The pad writes what the library writes, side by side too, and stops when it is told."""

from __future__ import annotations

import threading

import pytest

from pangu_lab import PanguLM
from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, generate
from tests.generate.fakes import CharacterTokenizer, TableRunner, random_table
from widgets.generation_pad import GenerationPad, pieces_of

SETTINGS = SamplingConfig(max_new_tokens=12, temperature=0.8, seed=3)


class SlowRunner(TableRunner):
    """Waits before every token until it is let on."""

    def __init__(self, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self.turn, self.reached = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, *arguments, **more):
        self.reached.release()
        assert self.turn.acquire(timeout=30)
        return super().run(*arguments, **more)


def engine_of(seed: int = 0, slots: int = 256, kind=TableRunner, name: str = "first") -> Engine:
    tokenizer = CharacterTokenizer()
    table = random_table(tokenizer.vocab_size, seed)

    def without_an_end(ids):
        logits = table(ids)
        logits[tokenizer.eod_id] = -100.0
        return logits

    return Engine(kind(without_an_end, tokenizer.vocab_size, 32, slots), tokenizer, SETTINGS, name)


def ask(pad: GenerationPad, do: str, **content) -> None:
    pad._received(pad, {"do": do, **content}, [])


def test_a_column_writes_what_generate_writes_and_it_goes_into_the_history():
    engine = engine_of()
    pad = GenerationPad(engine, prompt="ab")
    ask(pad, "write", prompt="春天")
    assert pad.wait(30)
    want = generate(engine, "春天", SETTINGS)
    (output,) = pad.outputs
    assert output["text"] == want.text and output["state"] == "done" and output["reason"] == want.finish_reason
    assert output["tokens"] == 12 and output["seed"] == 3 and want.text in pad.still_text()
    pad.write("好")
    assert pad.wait(30) and [entry["prompt"] for entry in pad.history] == ["好", "春天"]
    ask(pad, "recall", number=1)
    assert pad.prompt == "春天" and pad.outputs[0]["text"] == want.text
    assert engine.runner.pool.free == engine.runner.pool.slots


@pytest.mark.parametrize("slots", [256, 32])  # 32: one column at a time has room
def test_two_settings_or_two_models_stand_side_by_side(slots):
    first, second = engine_of(slots=slots), engine_of(7, slots, name="second")
    hot = SamplingConfig(max_new_tokens=20, temperature=1.5, seed=4)
    settings = GenerationPad(first, prompt="ab", sampling=[SETTINGS, hot])
    models = GenerationPad(first, second, prompt="ab", sampling=SETTINGS)
    for pad, wanted in (
        (settings, [(first, SETTINGS), (first, hot)]),
        (models, [(first, SETTINGS), (second, SETTINGS)]),
    ):
        pad.write()
        assert pad.wait(30)
        assert [output["text"] for output in pad.outputs] == [
            generate(*want[:1], "ab", want[1]).text for want in wanted
        ]
    assert models.outputs[0]["text"] != models.outputs[1]["text"]
    ask(settings, "beside")
    assert len(settings.columns) == len(settings.outputs) == 1


def test_two_checkpoints_of_a_real_run_write_side_by_side_what_each_writes_alone(debug_run):
    early, late = (PanguLM.load(path) for path in sorted(debug_run.glob("checkpoints/step-*")))
    pad = GenerationPad(early, late, prompt="春天", sampling=SETTINGS)
    assert pad.models == ["step-00000010", "step-00000020"]
    pad.write()
    assert pad.wait(60)
    alone = [lm.generate("春天", max_new_tokens=12, temperature=0.8, seed=3).text for lm in (early, late)]
    assert [output["text"] for output in pad.outputs] == alone and alone[0] != alone[1]
    assert [output["state"] for output in pad.outputs] == ["done", "done"]
    assert all(name in pad.still_html() and text in pad.still_text() for name, text in zip(pad.models, alone))
    ask(pad, "beside")
    ask(pad, "beside")  # the second column comes back with the other model
    assert [column["model"] for column in pad.columns] == [0, 1]


def test_stop_ends_it_after_the_token_that_is_being_made():
    engine = engine_of(kind=SlowRunner)
    pad = GenerationPad(engine, prompt="ab")
    pad.write()
    for _ in range(3):
        assert engine.runner.reached.acquire(timeout=30)
        engine.runner.turn.release()
    assert engine.runner.reached.acquire(timeout=30) and pad.writing  # it is in its fourth token now
    with pytest.raises(InputError, match="still writing"):
        pad.write()
    ask(pad, "stop")
    engine.runner.turn.release()
    assert pad.wait(30) and pad.outputs[0]["reason"] == "cancelled" and pad.outputs[0]["tokens"] == 4
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_what_cannot_work_is_said_in_its_column_and_the_other_writes():
    pad = GenerationPad(engine_of(), prompt="ab", sampling=[SETTINGS, SETTINGS])
    pad.columns = [pad.columns[0], {**pad.columns[1], "settings": {**pad.columns[1]["settings"], "temperature": -1}}]
    pad.write()
    assert pad.wait(30) and pad.outputs[0]["state"] == "done"
    assert pad.outputs[1]["state"] == "refused" and "sampling.temperature=-1" in pad.outputs[1]["note"]
    with pytest.raises(InputError, match="needs a model"):
        GenerationPad()


def test_a_network_that_fails_is_said_in_its_column_and_the_other_writes_to_its_end():
    engine = engine_of()
    table = engine.runner.logits_of

    def worn_out(ids):
        if len(ids) > 5:
            raise RuntimeError("out of memory")
        return table(ids)

    engine.runner.logits_of = worn_out
    pad = GenerationPad(engine, engine_of(7), prompt="ab", sampling=SETTINGS)
    pad.write()
    assert pad.wait(30)
    assert [output["state"] for output in pad.outputs] == ["refused", "done"]
    assert pad.outputs[0]["note"] == "RuntimeError: out of memory" and len(pad.outputs[0]["text"]) >= 3
    assert engine.runner.pool.free == engine.runner.pool.slots
    engine.runner.logits_of = table
    pad.write()
    assert pad.wait(30) and pad.outputs[0]["state"] == "done"


def test_columns_of_checkpoints_with_one_name_can_be_told_apart():
    assert GenerationPad(engine_of(), engine_of(7), engine_of(8, name="second")).models == [
        "first",
        "first (2)",
        "second",
    ]


def test_markup_that_a_model_writes_stays_text():
    pad = GenerationPad(engine_of(), prompt="<script>")
    assert "<script" not in pad._repr_mimebundle_()[0]["text/html"]


def test_the_text_is_cut_where_its_tokens_end_and_shown_so_when_asked():
    tokenizer = CharacterTokenizer()
    halves = [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    ab, spring, end = tokenizer.id_of("ab"), tokenizer.id_of("春天"), tokenizer.eod_id
    assert pieces_of(tokenizer, [ab, *halves, spring], "abé春天") == [("ab", [ab]), ("é", halves), ("春天", [spring])]
    assert pieces_of(tokenizer, [ab, spring], "ab春") == [("ab", [ab]), ("春", [spring])]  # a stop string cut it
    assert pieces_of(tokenizer, [ab, spring], "ab") == [("ab", [ab])]
    assert pieces_of(tokenizer, [ab, halves[0]], "ab\N{REPLACEMENT CHARACTER}")[-1] == (
        "\N{REPLACEMENT CHARACTER}",
        halves[:1],
    )
    assert pieces_of(tokenizer, [], "") == [] and pieces_of(tokenizer, [end, ab], "ab") == [("ab", [end, ab])]


def test_coloured_pieces_are_off_until_switched_on_and_markup_in_them_stays_text(monkeypatch):
    engine = engine_of()
    monkeypatch.setattr(engine.tokenizer, "pieces", [b"", *[b"<b>"] * (engine.vocab_size - 1)])
    pad = GenerationPad(engine, prompt="ab", sampling=SETTINGS)
    pad.write()
    assert pad.wait(30)
    (output,) = pad.outputs
    assert [text for text, _ in output["pieces"]] == ["<b>"] * 12 and output["text"] == "<b>" * 12
    assert "border-bottom" not in pad.still_html() and output["text"] in pad.still_text()
    pad.show_tokens = True
    assert pad.still_html().count("border-bottom") == 12 and "<b>" not in pad.still_html()
    assert "<b>|<b>" in pad.still_text()
