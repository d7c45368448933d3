"""The picture of the architecture in CONTRIBUTING.md: the parts of the library, layer by layer, and what imports what.

    make map        writes docs/architecture.png

The layers are those of ``test_project.py``, which holds every import to them: a part imports from its own row and from
the rows above it. A line goes from a part to one that it imports; the thicker, the more modules do.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pangu_lab.plotting import new_figure, save_png
from tests.test_project import LAYERS, MODULES, ROOT, imports, part, tree

GENERAL = {name for names in LAYERS[:2] for name in names}  # imported everywhere: their lines would hide the others
ACROSS = (3.2, 8.9, 6.0)  # where parts that have a row to themselves stand, in turn


def lines_of_code() -> Counter[str]:
    """Lines of every part."""
    counted: Counter[str] = Counter()
    for path in MODULES:
        counted[part(path)] += len(path.read_text(encoding="utf-8").splitlines())
    return counted


def links() -> Counter[tuple[str, str]]:
    """(part, part that it imports) → in how many modules."""
    found: Counter[tuple[str, str]] = Counter()
    for path in MODULES:
        names = {name.split(".")[1] for _, name in imports(path, tree(path)) if name.startswith("pangu_lab.")}
        found.update((part(path), name) for name in names - {part(path)})
    return found


def draw(out: Path) -> Path:
    """Draw the picture."""
    from matplotlib.patches import FancyBboxPatch

    sizes = lines_of_code()
    drawing = new_figure(11, 13)
    axes = drawing.add_subplot()
    places = {}
    for row, names in enumerate(LAYERS):
        for column, name in enumerate(names):
            x = ACROSS[row % len(ACROSS)] if len(names) == 1 else (column + 0.5) * 12 / len(names)
            places[name] = x, -row - (0.3 if row == 0 and column % 2 else 0)
    for (source, target), count in links().items():
        if source in places and target in places and target not in GENERAL:
            (x, y), (u, v) = places[source], places[target]
            bend = 0.12 if u >= x else -0.12
            axes.annotate(
                "",
                (u, v - 0.17),
                (x, y + 0.17),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#4878b0",
                    "alpha": 0.3,
                    "linewidth": 0.5 + 0.3 * min(count, 8),
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )
    for name, (x, y) in places.items():
        width = 0.35 + 0.085 * len(name)
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - 0.15),
                width,
                0.3,
                boxstyle="round,pad=0.03",
                zorder=3,
                facecolor="#eef3fa" if name not in GENERAL else "#f4f4f4",
                edgecolor="#4878b0",
            )
        )
        axes.text(x, y, name, ha="center", va="center", fontsize=8 if name in GENERAL else 9, zorder=4)
        if name not in GENERAL:
            axes.text(
                x,
                y - 0.27,
                f"{sizes[name]:,} lines",
                ha="center",
                va="center",
                fontsize=6.5,
                color="#555555",
                zorder=4,
                bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0},
            )
    axes.set(xlim=(-0.1, 12.6), ylim=(-len(LAYERS) + 0.4, 0.6))
    axes.axis("off")
    return save_png(drawing, out, 110)


if __name__ == "__main__":
    print(draw(ROOT / "docs" / "architecture.png"))
