"""What every picture begins and ends with: an empty figure, a font that can draw Chinese, a file that is small.

Matplotlib's own font has no Chinese glyphs and draws boxes instead, so every plot with Chinese labels asks here
first. The well-known fonts of the three systems are tried by name, sans serif and simplified forms before others;
then every other font is asked whether it has glyphs for some characters, and different ones: matplotlib 3.11 brings
"Last Resort", which draws the same box for every character of a script. Last comes the font of the package mplfonts (the
extra ``fonts``), of which nothing is imported. Matplotlib keeps a cached list of fonts and misses those installed after
it was made: files it does not know yet are added to the list of this process.
"""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path

SOME = "中国说书"  # simplified ones among them
PACKAGED = "mplfonts", "fonts/NotoSansCJKsc-Regular.otf"
KNOWN_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Heiti SC",
    "Hiragino Sans GB",
    "SimHei",
    "Noto Serif CJK SC",
    "Source Han Serif SC",
    "Songti SC",
    "SimSun",
    "AR PL UMing CN",
    "Arial Unicode MS",
    "Noto Sans CJK TC",
    "Noto Sans CJK JP",  # matplotlib before 3.11 sees only this face of Noto's collection; it has the glyphs
    "Noto Serif CJK JP",
    "Droid Sans Fallback",
)


def cjk_font() -> str | None:
    """The name of an installed font that draws Chinese, for matplotlib's ``font.family``; None where none is."""
    from matplotlib import font_manager

    name = _by_name(font_manager)
    if name is None and _add_new_files(font_manager):
        name = _by_name(font_manager)
    return name or _by_glyph(font_manager) or _packaged(font_manager)


def font_families() -> list[str]:
    """For matplotlib's ``fontfamily``: a Chinese font, then its own, which has the signs (↵ ␣ ▁) that the first may lack."""
    return [name for name in (cjk_font(), "DejaVu Sans") if name]


def _by_name(font_manager) -> str | None:
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return next((name for name in KNOWN_FONTS if name in names), None)


def _add_new_files(font_manager) -> bool:
    """Tell matplotlib of font files that its cached list lacks; whether there were any."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    new = [path for path in font_manager.findSystemFonts() if path not in known]
    for path in new:
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # bitmap and damaged fonts: not usable, and not our concern
            continue
    return bool(new)


def _by_glyph(font_manager) -> str | None:
    for entry in font_manager.fontManager.ttflist:
        try:
            glyphs = [font_manager.get_font(entry.fname).get_char_index(ord(character)) for character in SOME]
            if all(glyphs) and len(set(glyphs)) == len(SOME):
                return entry.name
        except (OSError, RuntimeError, ValueError):
            continue
    return None


def _packaged(font_manager) -> str | None:
    """The font of a package that was installed for this."""
    package, name = PACKAGED
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / name if found is not None and found.origin else None
    if path is None or not path.is_file():
        return None
    known = len(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(str(path))
    return font_manager.fontManager.ttflist[known].name


def new_figure(width: float, height: float):
    """An empty matplotlib figure of width × height inches that needs no display; ``save_png`` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure, png: Path | str, dpi: int) -> Path:
    """Write a figure to a PNG file of 256 colours: notebooks keep their pictures, and matplotlib's are three times as large."""
    from PIL import Image  # comes with matplotlib

    written = BytesIO()
    figure.savefig(written, dpi=dpi)
    few = (
        Image.open(written).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )  # rare ones stay
    few.save(png, format="PNG", optimize=True, dpi=(dpi, dpi))
    return Path(png)
