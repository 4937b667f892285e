"""The sheet of portraits, and the curve of likeness against the prompt as one number is turned (the paper's Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from .cells import Cell
from .intervals import mean_of
from .portrait import open_picture
from .table import LEAST, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, HEAD, FOOT = 192, 22, 18


def sheet(cells: Sequence[Cell], out: Path, rows: int) -> Image.Image | None:
    """A line for each of the first people, each with another prompt: the photograph and every method's portrait. They
    are chosen by their order, never by a score. None without pictures."""
    methods = list(dict.fromkeys(cell.method.name for cell in cells))
    lines: dict[str, dict[str, Cell]] = {}
    people = list(dict.fromkeys(cell.person.id for cell in cells))
    for place, person in enumerate(people[:rows]):
        own = [cell for cell in cells if cell.person.id == person]
        prompts = list(dict.fromkeys((cell.prompt.id, cell.number) for cell in own))
        chosen = prompts[place % len(prompts)]
        lines[person] = {cell.method.name: cell for cell in own if (cell.prompt.id, cell.number) == chosen}
    if not lines:
        return None
    picture = Image.new("RGB", (SIDE * (len(methods) + 1), HEAD + len(lines) * (SIDE + FOOT)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for column, name in enumerate(["photograph", *methods]):
        draw.text((column * SIDE + 4, 4), name, fill="black", font=font)
    for line, found in enumerate(lines.values()):
        first, top = next(iter(found.values())), HEAD + line * (SIDE + FOOT)
        picture.paste(tile(first.person.photo), (0, top))
        for column, name in enumerate(methods, 1):
            if name in found and found[name].file(out).is_file():
                picture.paste(tile(found[name].file(out)), (column * SIDE, top))
        draw.text((4, top + SIDE + 2), first.text, fill="black", font=font)
    return picture


def tile(file: Path) -> Image.Image:
    """A square from a picture's middle."""
    picture, _ = open_picture(file)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((SIDE, SIDE), Image.LANCZOS, (left, top, left + side, top + side))


def curve(results: Results, swept: Sequence[str], file: Path) -> Figure | None:
    """Likeness over prompt for methods that differ by one number, joined, and the others as points, with intervals
    where there are people enough: the figure that was saved. None where a column for either axis is missing."""
    keys = {shown.key: shown for shown in results.shown}
    x = next((keys[key] for key in ("clip_t", "text") if key in keys), None)
    y = next((keys[key] for key in ("sim", "margin", "same") if key in keys), None)
    if x is None or y is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    at = {}
    for method, rows in results.rows.items():
        found = [(mean_of(rows, shown.key), shown.factor) for shown in (x, y)]
        if any(value is None for value, _ in found):
            continue
        at[method] = tuple(value.mean * factor for value, factor in found)
        if min(value.people for value, _ in found) >= LEAST:
            across, up = ([[(v.mean - v.low) * factor], [(v.high - v.mean) * factor]] for v, factor in found)
            axes.errorbar(*at[method], xerr=across, yerr=up, color="lightgrey", zorder=0)
    line = [at[method] for method in swept if method in at]
    if line:
        axes.plot(*zip(*line, strict=True), color="tab:blue", zorder=1)
    for method, place in at.items():
        axes.scatter(*place, color="tab:blue" if method in swept else "tab:orange", zorder=2)
        axes.annotate(method, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel(f"{x.title} (prompt)")
    axes.set_ylabel(f"{y.title} (likeness)")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    return figure
