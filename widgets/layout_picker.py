"""``LayoutPicker``: how a model is spread over devices: the planner's layouts, the mesh, and what each rank holds.

The layouts, their order and the recommendation are the planner's; what a rank holds comes from the same tables that
training and checkpoints use.
"""

from __future__ import annotations

from typing import Any

import traitlets
import yaml

from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import parameter_specs
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import Shard, parameter_shards
from pangu_lab.planner import HARDWARE, LayoutEstimate, plan
from pangu_lab.planner.hardware import GIB
from pangu_lab.presets import PRESETS, preset
from widgets.base import LabWidget, escape, still_block
from widgets.still import COLORS, figure

MOST_ROWS = 8  # data ranks drawn; the others hold the same
MOST_DEVICES = 4096


class LayoutPicker(LabWidget):
    """Layouts of a model on some devices.

    Args:
        config: a preset's name, or settings; the layout in it is not looked at.
        devices: how many there are.
        hardware: of which kind; see ``pangu_lab.planner.HARDWARE``.
        memory: of each, in GB; the hardware's own when not given.
        batch: records of a step over all devices; the settings' own when not given.

    Attributes:
        config: the settings with the chosen layout in them.
    """

    _script = "layout_picker"
    _sections = ("layout",)
    preset = traitlets.Unicode().tag(sync=True)
    presets = traitlets.List().tag(sync=True)
    hardware = traitlets.Enum(tuple(HARDWARE), default_value="ascend910").tag(sync=True)
    hardwares = traitlets.List(list(HARDWARE)).tag(sync=True)
    devices = traitlets.Int(8).tag(sync=True)
    memory = traitlets.Float(allow_none=True, default_value=None).tag(sync=True)
    batch = traitlets.Int().tag(sync=True)
    layouts = traitlets.List().tag(sync=True)
    why = traitlets.List().tag(sync=True)
    why_zh = traitlets.List().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)
    rank = traitlets.Int(0).tag(sync=True)
    mesh = traitlets.Dict().tag(sync=True)
    held = traitlets.Dict().tag(sync=True)
    settings = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        config: RunConfig | str = "2.6B",
        devices: int = 8,
        hardware: str = "ascend910",
        memory: float | None = None,
        batch: int | None = None,
        **values: Any,
    ) -> None:
        self._base = preset(config) if isinstance(config, str) else config
        self._found: tuple[LayoutEstimate, ...] = ()
        super().__init__(
            preset=self._base.preset,
            presets=list(dict.fromkeys([self._base.preset, *PRESETS])),
            devices=devices,
            hardware=hardware,
            memory=memory,
            batch=batch or self._base.data.batch_size,
            **values,
        )
        self.observe(lambda change: self._another_model(), "preset")
        self.observe(lambda change: self._plan(), ["devices", "hardware", "memory", "batch"])
        self.observe(lambda change: self._draw(), "chosen")
        self.observe(lambda change: self._look(), "rank")
        self._plan()

    @property
    def config(self) -> RunConfig:
        """The settings with the chosen layout.

        Raises:
            InputError: there is no layout for these devices.
        """
        if not self._found:
            raise InputError(self.note or "there is no layout to choose")
        return self._base.replace(**{"data.batch_size": self.batch, **self._found[self.chosen].settings()})

    def _another_model(self) -> None:
        self._base = preset(self.preset)
        self._plan()

    def _plan(self) -> None:
        try:
            if not 0 < self.devices <= MOST_DEVICES:
                raise InputError(f"{self.devices} devices: plans are made here for 1 to {MOST_DEVICES}")
            memory = None if self.memory is None else int(self.memory * GIB)
            found = plan(self._base, self.devices, memory, self.batch, self.hardware)
        except InputError as error:
            self._found = ()
            with self.hold_sync():
                self.note, self.layouts, self.why, self.why_zh = str(error), [], [], []
                self.mesh, self.held, self.settings = {}, {}, ""
            return
        self._found = found.layouts
        with self.hold_sync():
            self.note, self.why, self.why_zh = "", list(found.why), list(found.why_zh)
            self.layouts = [{**_row(item), "recommended": item == found.chosen} for item in found.layouts]
            self.chosen = 0
            self._draw()

    def _draw(self) -> None:
        """The mesh of the chosen layout, and what its first rank holds."""
        if not 0 <= self.chosen < len(self._found):
            return
        parallel = self._found[self.chosen].parallel
        with self.hold_sync():
            self.mesh = mesh_of(parallel, self._base.model.num_layers)
            self.settings = yaml.safe_dump(_nested(self._found[self.chosen].settings()), sort_keys=False).strip()
            self.rank = 0
            self._look()

    def _look(self) -> None:
        if self._found and 0 <= self.rank < self.devices:
            self.held = held_by(self._base.model, self._found[self.chosen].parallel, self.rank)

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        return "\n".join([*self._layout_lines(), *self._held_lines()])

    def _layout_lines(self) -> list[str]:
        """The layouts and why the first is recommended; or why there are none."""
        if self.note:
            return [self.note]
        rows = [
            f"{'→' if row['recommended'] else ' '} {row['pipeline']} × {row['data']} × {row['tensor']}  "
            f"{row['total'] / GIB:7.1f} / {row['capacity'] / GIB:.0f} GB  {self.word('layout', 'step_time')} {figure(row['step_seconds'], 3)} s"
            for row in self.layouts[:8]
        ]
        return [
            f"{self.preset}, {self.devices} × {self.hardware}: {self.word('layout', 'layout')}",
            *rows,
            *(self.why_zh if self.language == "zh" else self.why),
        ]

    def _held_lines(self) -> list[str]:
        """What the chosen rank holds: which part of which tensor of which layers."""
        if not self.held:
            return []
        lines = [self.word("layout", "rank_holds", **{**self.held, "parameters": f"{self.held['parameters']:,}"})]
        for row in self.held["rows"]:
            where = _spans(row["layers"]) if row["where"] == "block" else self.word("layout", row["where"])
            here = self.word("layout", "all") if row["here"] is None else " × ".join(f"{a}–{b}" for a, b in row["here"])
            lines.append(f"  {where}  {row['name']}  {' × '.join(map(str, row['whole']))}: {here}")
        return lines

    def still_html(self) -> str:
        parts = [still_block("\n".join(self._layout_lines()))]
        if self.mesh:
            parts.append(mesh_svg(self.mesh))
            if self.mesh["hidden"]:
                parts.append(still_block(self.word("layout", "hidden_rows", number=self.mesh["hidden"])))
            holds, *rows = self._held_lines()
            held = still_block("\n".join(rows))
            parts.append(f"<details><summary>{escape(holds)}</summary>{held}</details>")
        return "".join(parts)


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a configuration file."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        found.setdefault(section, {})[name] = value
    return found


def _row(item: LayoutEstimate) -> dict[str, Any]:
    parallel = item.parallel
    return {
        "pipeline": parallel.pipeline,
        "data": parallel.data,
        "tensor": parallel.tensor,
        "fits": bool(item.fits),
        "micro_batches": parallel.micro_batches * item.accumulation,
        "optimizer": bool(parallel.optimizer),
        "recompute": parallel.recompute,
        "expert": parallel.expert,
        "total": int(item.total),
        "capacity": int(item.capacity),
        "memory": {kind: int(size) for kind, size in item.memory.items()},
        "step_seconds": float(item.step_seconds),
        "tokens_per_second": float(item.tokens_per_second),
        "bubble": float(item.bubble),
    }


def mesh_of(parallel: ParallelConfig, num_layers: int) -> dict[str, Any]:
    """Stages with their layers, and for each the ranks as rows (data) of columns (tensor); plain values."""
    rows = min(parallel.data, MOST_ROWS)
    stages = []
    for stage in range(parallel.pipeline):
        first = Mesh(parallel, stage * parallel.data * parallel.tensor)
        layers = first.layers(num_layers)
        ranks = [[first.rank_at(data=data, tensor=tensor) for tensor in range(parallel.tensor)] for data in range(rows)]
        stages.append({"layers": [layers[0], layers[-1]], "query": layers[-1] == num_layers - 1, "ranks": ranks})
    return {"stages": stages, "hidden": parallel.data - rows, "tensor": parallel.tensor}


def held_by(model: ModelConfig, parallel: ParallelConfig, rank: int) -> dict[str, Any]:
    """What a rank holds: its place, its parameters, and a row for each kind of tensor with the layers that have it."""
    mesh = Mesh(parallel, rank)
    specs = parameter_specs(model)
    shards = parameter_shards(specs, mesh, model.num_layers)
    rows: dict[tuple, dict[str, Any]] = {}
    for name, shard in shards.items():
        where, short = _where(name)
        key = ("block" if isinstance(where, int) else where, short, shard)
        row = rows.setdefault(
            key, {"where": key[0], "layers": [], "name": short, "whole": list(shard.whole), "here": _part(shard)}
        )
        if isinstance(where, int):
            row["layers"].append(where)
    size = sum(_size(shard) for shard in shards.values())
    return {"rank": rank, **mesh.coordinates, "parameters": size, "rows": list(rows.values())}


def _where(name: str) -> tuple[int | str, str]:
    """A released name as (block's number, "query_layer" or "embedding"; what is left of the name)."""
    words = name.removeprefix("backbone.").split(".")
    if words[0] == "blocks":
        return int(words[1]), ".".join(words[2:])
    if words[0].startswith("top_query"):
        return "query_layer", ".".join(words[1:]) if words[0] == "top_query_layer" else ".".join(words)
    return "embedding", ".".join(words)


def _spans(layers: list[int]) -> str:
    """Layers in order, those that follow each other as first–last."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)


def _part(shard: Shard) -> list[list[int]] | None:
    """[first, last] along each axis, or None where all of it is here."""
    if shard.whole == shard.shape:
        return None
    return [[start, start + size - 1] for start, size in zip(shard.offset, shard.shape)]


def _size(shard: Shard) -> int:
    size = 1
    for part in shard.shape:
        size *= part
    return size


def mesh_svg(mesh: dict[str, Any]) -> str:
    """The mesh as a picture without scripts."""
    cell, parts, left = 34, [], 10
    for number, stage in enumerate(mesh["stages"]):
        first, last = stage["layers"]
        parts.append(f'<text x="{left}" y="14" fill="#667">{number}: {first}–{last}</text>')
        for row, ranks in enumerate(stage["ranks"]):
            for column, rank in enumerate(ranks):
                x, y = left + column * cell, 22 + row * cell
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{cell - 4}" height="{cell - 4}" rx="5" '
                    f'fill="{COLORS[column % len(COLORS)]}"/><text x="{x + cell / 2 - 2}" y="{y + cell / 2 + 2}" '
                    f'text-anchor="middle" fill="#fff">{rank}</text>'
                )
        left += max(len(stage["ranks"][0]) * cell, 56) + 14
    height = 30 + cell * len(mesh["stages"][0]["ranks"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left} {height}" width="{left}" '
        f'style="max-width:100%;background:#fff" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )
