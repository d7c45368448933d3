"""Pictures of layouts: which rank stands where in the mesh, and what each layout of a plan would hold."""

from __future__ import annotations

from pathlib import Path

from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.planner.hardware import GIB
from pangu_lab.planner.layouts import LayoutEstimate, Plan
from pangu_lab.planner.memory import KINDS
from pangu_lab.planner.words import size
from pangu_lab.plotting import new_figure, save_png

COLORS = dict(zip(KINDS, ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#bab0ac")))
MOST_RANKS = 256  # a picture of more could not be read


def plot_mesh(parallel: ParallelConfig, num_layers: int, png: Path | str) -> Path:
    """Every rank of a layout: a block of columns a pipeline stage, a row a data rank, a column a tensor rank.

    Ranks of one row in one block hold slices of the same layers and sum activations; ranks of one column hold the same
    slices and sum gradients; blocks hand activations to the right.

    Raises:
        InputError: there are more ranks than a picture can show.
    """
    if parallel.world_size > MOST_RANKS:
        raise InputError(f"a mesh of {parallel.world_size} ranks is too large to draw; at most {MOST_RANKS}")
    columns = parallel.pipeline * (parallel.tensor + 0.6)
    figure = new_figure(min(14.0, 2.2 + 0.75 * columns), 1.5 + 0.6 * parallel.data)
    axes = figure.subplots()
    for rank in range(parallel.world_size):
        mesh = Mesh(parallel, rank)
        stage, data, tensor = (mesh.index(name) for name in ("pipeline", "data", "tensor"))
        left = stage * (parallel.tensor + 0.6) + tensor
        color = list(COLORS.values())[tensor % len(COLORS)]
        axes.add_patch(_rectangle(left, data, color))
        axes.text(left + 0.46, data + 0.46, str(rank), ha="center", va="center", color="white", fontsize=11)
    for stage in range(parallel.pipeline):
        _label_stage(axes, parallel, stage, num_layers)
    axes.set(
        xlim=(-0.2, columns),
        ylim=(parallel.data, -0.75),
        yticks=[n + 0.46 for n in range(parallel.data)],
        yticklabels=[f"data {n}" for n in range(parallel.data)],
        xticks=[],
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("numbers are ranks; a colour is a slice of the weights", fontsize=10, loc="left")
    return save_png(figure, png, 120)


def _rectangle(left: float, top: float, color: str):
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((left + 0.04, top + 0.04), 0.84, 0.84, boxstyle="round,pad=0,rounding_size=0.1", color=color)


def _label_stage(axes, parallel: ParallelConfig, stage: int, num_layers: int) -> None:
    layers = Mesh(ParallelConfig(pipeline=parallel.pipeline), stage).layers(num_layers)
    span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    left = stage * (parallel.tensor + 0.6)
    axes.text(left + parallel.tensor / 2, -0.2, f"stage {stage}: {span}", ha="center", fontsize=9)
    if stage + 1 < parallel.pipeline:
        axes.annotate(
            "",
            (left + parallel.tensor + 0.6, parallel.data / 2),
            (left + parallel.tensor, parallel.data / 2),
            arrowprops={"arrowstyle": "->", "color": "#444444"},
        )


def plot_plan(plan: Plan, png: Path | str, most: int = 8) -> Path:
    """What the first ``most`` layouts of a plan hold on their fullest device, by kind, and what there is room for."""
    shown = plan.layouts[:most]
    figure = new_figure(11, 1.8 + 0.42 * len(shown))
    axes = figure.subplots()
    for row, item in enumerate(shown):
        _draw_memory(axes, row, item, chosen=item == plan.chosen)
    axes.axvline(shown[0].capacity / GIB, color="#444444", linestyle="--", linewidth=1)
    axes.text(shown[0].capacity / GIB, -0.62, f" room: {size(shown[0].capacity)}", fontsize=9, color="#444444")
    axes.set(
        yticks=range(len(shown)),
        yticklabels=[_title(item, plan) for item in shown],
        xlabel="GB on a device",
        ylim=(len(shown) - 0.4, -0.95),
    )
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=color, label=kind) for kind, color in COLORS.items()]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=len(KINDS), fontsize=9, frameon=False
    )
    return save_png(figure, png, 100)


def _title(item: LayoutEstimate, plan: Plan) -> str:
    parallel = item.parallel
    mark = "→ " if item == plan.chosen else ""
    return f"{mark}pipeline {parallel.pipeline} × data {parallel.data} × tensor {parallel.tensor}"


def _draw_memory(axes, row: int, item: LayoutEstimate, chosen: bool) -> None:
    left = 0.0
    for kind in KINDS:
        width = item.memory[kind] / GIB
        axes.barh(row, width, left=left, height=0.66, color=COLORS[kind], alpha=1.0 if item.fits else 0.35)
        left += width
    speed = f"{item.step_seconds:.2g} s a step" if item.fits else "does not fit"
    axes.text(
        left, row, f"  {size(item.total)}, {speed}", va="center", fontsize=9, fontweight="bold" if chosen else "normal"
    )
