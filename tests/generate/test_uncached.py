"""Without the cache: the same text, and every step feeds all of it."""

from __future__ import annotations

from pangu_lab import PanguLM
from pangu_lab.cli import main
from pangu_lab.generate.uncached import UncachedRunner

SETTINGS = {"max_new_tokens": 12, "temperature": 0.8, "seed": 5}


def test_the_text_is_that_with_the_cache_and_each_step_feeds_all_of_it(debug_run, monkeypatch):
    lm = PanguLM.load(debug_run)
    wanted = lm.generate("春天来了，", **SETTINGS)
    beams = lm.generate("春天来了，", max_new_tokens=6, num_beams=3)
    fed, run = [], lm.runner.run
    monkeypatch.setattr(lm.runner, "run", lambda ids, *rest: fed.append(ids.shape) or run(ids, *rest))
    lm.engine.runner = UncachedRunner(lm.runner)
    found = lm.generate("春天来了，", **SETTINGS)
    assert found.ids == wanted.ids and len(wanted.ids) > 3
    lengths = [n for _, n in fed]
    assert lengths == list(range(lengths[0], lengths[0] + len(lengths))) and len(lengths) >= len(wanted.ids)
    assert lm.generate("春天来了，", max_new_tokens=6, num_beams=3).ids == beams.ids


def test_the_command_takes_it(debug_run, capsys):
    line = ["generate", "--from", str(debug_run), "--prompt", "春天来了，", "--seed", "5", "--max-new-tokens", "8"]
    texts = []
    for more in ([], ["--no-cache"]):
        assert main([*line, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
