"""``ConfigForm``: every setting of a run as a form, made from the typed settings themselves.

Each change is validated at once by the settings' own checks; their messages appear under the form, and the last valid
settings stay in ``config``. Parameters, memory and time are updated as you type, and the command shown does
exactly this.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Union

import traitlets

from pangu_lab.config import CHOICES, SLICES, RunConfig, all_keys, apply_overrides, config_from_dict
from pangu_lab.data import vocabulary_of
from pangu_lab.errors import InputError
from pangu_lab.files import write_text_atomic
from pangu_lab.memory import IDLE
from pangu_lab.planner import HARDWARE, estimate
from pangu_lab.presets import PRESETS, changed_settings, preset
from pangu_lab.ranges import shown
from pangu_lab.reading import parse_yaml
from widgets.base import LabWidget, escape, still_block
from widgets.command import HERE, Target, command_text, launch_words, value_text


def field_kind(key: str, hint: Any) -> str:
    """How a setting is typed in: "bool", "number", "choice", "text" (as it is) or "yaml" (lists, names or ids)."""
    if key in CHOICES:
        return "choice"
    kinds = (
        [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
        if typing.get_origin(hint) in (Union, types.UnionType)
        else [hint]
    )
    if kinds == [bool]:
        return "bool"
    if set(kinds) <= {int, float}:
        return "number"
    return "text" if kinds == [str] else "yaml"


def fields_of(config: RunConfig) -> list[dict[str, Any]]:
    """What the form is made of, a dictionary a setting, in the order of the settings."""
    hints = {
        section.name: typing.get_type_hints(type(getattr(config, section.name)))
        for section in dataclasses.fields(config)
        if section.name != "preset"
    }
    found = []
    for key in all_keys(config):
        section, name = key.split(".")
        hint = hints[section][name]
        found.append(
            {
                "key": key,
                "section": section,
                "name": name,
                "kind": field_kind(key, hint),
                "choices": list(CHOICES.get(key, ())),
                "optional": type(None) in typing.get_args(hint),
            }
        )
    return found


def text_of(value: Any, kind: str) -> str:
    """A value as the form shows it; nothing at all for None."""
    if value is None:
        return ""
    if kind == "choice" and isinstance(value, bool):
        return SLICES[value]
    if kind in ("text", "choice"):
        return str(value)
    return value_text(value)


def value_of(text: str, field: dict[str, Any]) -> Any:
    """What was typed, as a plain value.

    Raises:
        InputError: it cannot be read.
    """
    if field["kind"] in ("text", "choice"):
        return None if text == "" and field["optional"] else text
    if not text.strip():
        return None
    return parse_yaml(text, f"{field['key']}={shown(text, repr)}")


class ConfigForm(LabWidget):
    """A form over a ``RunConfig``.

    Args:
        config: what to begin with; the preset ``tiny`` when not given. A preset's name is taken too.
        run: the run folder that the command names.
        hardware: what memory and time are estimated for; see ``pangu_lab.planner.HARDWARE``.

    Attributes:
        config: the last settings that work. Assign one to show it.
    """

    _script = "config_form"
    _sections = ("form",)
    fields = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    changed = traitlets.List().tag(sync=True)
    error = traitlets.Dict().tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    command = traitlets.Unicode().tag(sync=True)
    preset = traitlets.Unicode().tag(sync=True)
    presets = traitlets.List().tag(sync=True)
    hardware = traitlets.Enum(tuple(HARDWARE), default_value="cpu").tag(sync=True)
    hardwares = traitlets.List(list(HARDWARE)).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def __init__(self, config: RunConfig | str | None = None, run: Path | str = "runs/first", **values: Any) -> None:
        self.run, self.target = run, HERE
        start = preset(config) if isinstance(config, str) else config or preset("tiny")
        super().__init__(presets=list(PRESETS), fields=fields_of(start), **values)
        self._by_key = {field["key"]: field for field in self.fields}
        self.config = start
        self.observe(lambda change: self._show(self._config), "hardware")

    @property
    def config(self) -> RunConfig:
        return self._config

    @config.setter
    def config(self, config: RunConfig) -> None:
        self._base, self._edits = config, {}
        values = {
            field["key"]: text_of(getattr(getattr(config, field["section"]), field["name"]), field["kind"])
            for field in self.fields
        }
        with self.hold_sync():
            self.values, self.preset, self.error = values, config.preset, {}
            self.version += 1
            self._show(config)

    def name_run(self, run: Path | str, target: Target | None = None) -> None:
        """Name another run folder in the command, and where it runs."""
        self.run, self.target = run, target or self.target
        self.command = command_text(launch_words(self._config, run, target=self.target))

    def edit(self, key: str, text: str) -> None:
        """Type ``text`` into the field of a setting; ``error`` says what is wrong with it, if anything is."""
        self._edits[key] = text
        with self.hold_sync():
            self.values = {**self.values, key: text}
            try:
                if key == "data.path" and "model.vocab_size" not in self._edits:
                    self._take_vocabulary(text)
                read = {name: value_of(typed, self._by_key[name]) for name, typed in self._edits.items()}
                config = apply_overrides(self._base, read)
            except InputError as error:
                named = [name for name in self._by_key if name in str(error)]
                self.error = {"key": key if key in named or not named else named[0], "text": str(error)}
                return
            self.error = {}
            self._show(config)

    def _take_vocabulary(self, data: str) -> None:
        """That of a data set, as the command line does where none is set."""
        if (size := vocabulary_of(data)) is not None and size != self._base.model.vocab_size:
            self._base = self._base.replace(**{"model.vocab_size": size})
            self.values = {**self.values, "model.vocab_size": str(size)}
            self.version += 1

    def _show(self, config: RunConfig) -> None:
        self._config = config
        self.changed = list(changed_settings(config))
        self.name_run(self.run)
        self.figures = figures_of(config, self.hardware)

    # ---------------------------------------------------------------- YAML

    def to_yaml(self) -> str:
        """The settings as a configuration file holds them."""
        return self._config.to_yaml()

    def save(self, path: Path | str) -> None:
        """Write the settings to a YAML file."""
        write_text_atomic(path, self.to_yaml())

    def load(self, text: str) -> None:
        """Take the settings of a configuration file's text, laid over the preset it names.

        Raises:
            InputError: it is no configuration, or one that cannot work.
        """
        values = parse_yaml(text, "the file")
        if not isinstance(values, dict):
            raise InputError("a configuration holds sections such as 'model:' and 'train:'")
        base = preset(str(values["preset"])) if "preset" in values else None
        self.config = config_from_dict(values, base)

    # ---------------------------------------------------------------- from the page

    def _do_edit(self, content: dict[str, Any]) -> None:
        if content.get("key") in self._by_key:
            self.edit(content["key"], str(content.get("text", "")))

    def _do_preset(self, content: dict[str, Any]) -> None:
        paths = {key: getattr(self._config.data, key.split(".")[1]) for key in ("data.path", "data.eval_path")}
        self.config = preset(str(content.get("name"))).replace(**paths)

    def _do_save(self, content: dict[str, Any]) -> None:
        self.send({"kind": "file", "name": f"{self._config.preset}.yaml", "text": self.to_yaml()})

    def _do_load(self, content: dict[str, Any]) -> None:
        self.load(str(content.get("text", "")))

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        lines = [f"{self._config.preset}: {self.word('form', 'parameters')} {self._config.model.num_parameters:,}"]
        changes = changed_settings(self._config)
        lines += [f"  {key} = {value_text(value)}" for key, value in changes.items()]
        return "\n".join([*lines, self.command])

    def still_html(self) -> str:
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in self.values.items())
        return f"{still_block(self.still_text())}<details><summary>…</summary><table>{rows}</table></details>"


def figures_of(config: RunConfig, hardware: str) -> dict[str, Any]:
    """Parameters, and what the planner expects of memory and time on one kind of device; ``note`` says why not."""
    figures: dict[str, Any] = {"parameters": config.model.num_parameters, "devices": config.parallel.world_size}
    try:
        found = estimate(config, hardware=hardware)
    except InputError as error:
        return {**figures, "note": str(error)}
    tokens = config.data.batch_size * config.data.seq_length
    return {
        **figures,
        "memory": {kind: int(size) for kind, size in found.memory.items()},
        "total": found.total,
        "in_top": found.total + IDLE if hardware == "cpu" else None,
        "capacity": found.capacity,
        "fits": bool(found.fits),
        "step_seconds": found.step_seconds,
        "seconds": found.step_seconds * config.train.steps,
        "tokens": tokens * config.train.steps,
        "tokens_per_second": found.tokens_per_second,
    }
