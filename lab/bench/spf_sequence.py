"""Two attributes, one after the other: what of the first is left, and is the original still there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...training.spf_portrait.task import JOINED
from .campaign import markdown
from .spf_page import over_prompts
from .spf_pictures import Customised
from .spf_runs import OURS, ROWS, Place, trained

FIRST, SECOND = "hat", "glasses"

Numbers = Callable[[str, Customised, Sequence[str], int], list[dict]]
"""Of a name, a model, the attributes that it is asked for and a training's seed: rows of measured pictures."""


def sequence_lines(place: Place, numbers: Numbers) -> list[str]:
    """Lines of Markdown: the forgetting matrix. In a text that names both attributes both have to be there."""
    row = ROWS[OURS]
    first, alone = (trained(place.config(row, attribute, 0)) for attribute in (FIRST, SECOND))
    after = trained(place.config(row, SECOND, 0, start=first))
    models = {
        f"after {FIRST}": Customised(((first, 1.0),)),
        f"after {FIRST}, then {SECOND}": Customised(((after.with_name(JOINED), 1.0),)),
        "both trained alone, stacked": Customised(((first, 1.0), (alone, 1.0))),
    }
    texts = {FIRST: (FIRST,), SECOND: (SECOND,), "both": (FIRST, SECOND)}
    lines = [["", *(f"{name}: response, LPIPS outside" for name in texts), "none: false response, LPIPS"]]
    for name, model in models.items():
        cells, none = [], ""
        for text, attributes in texts.items():
            rows = numbers(f"{name}: {text}", model, attributes, 0)
            cells.append(f"{_told(rows, 'shown', 'complete')}%, {_told(rows, 'outside', 'complete', 1)}")
            none = f"{_told(rows, 'shown', 'base')}%, {_told(rows, 'whole', 'base', 1)}"
        lines.append([name, *cells, none])
    return ["## Two attributes in a row", "", markdown(lines), ""]


def _told(rows: list[dict], column: str, text: str, factor: float = 100) -> str:
    value = over_prompts(rows, column, text)
    return "–" if value is None else f"{value.mean * factor:.{0 if factor == 100 else 3}f}"
