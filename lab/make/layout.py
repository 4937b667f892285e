"""Where a workflow's nodes stand on the page: groups from left to right, columns in them, nodes from top to bottom.

Heights are what ComfyUI's page needs, in its classic look and in Nodes 2.0, whichever is more.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import PRIMITIVE, Node, Workflow
from .shapes import other_packs

LEFT, TOP = 450, 20
"""Corner of the first group, beside the note."""
TITLE, GAP, MARGIN = 30, 30, 22
"""Of a node's title bar, between two nodes, and from a group's border to its nodes."""
COLUMN, GROUP = 40, 40
"""Between two columns, and between two groups."""
SLOT, WIDGET, TEXT = 20, 28, 90
PICTURE = {
    "LoadImage": 300,
    "SaveImage": 380,
    "PreviewImage": 300,
    "OmniPortraitFaceReference": 240,
    "OmniPortraitFaceDetail": 180,
    "OmniPortraitRBGuidanceKSampler": 280,
    "OmniPortraitRBGuidanceReport": 280,
}
"""Room for the picture and the text that these show."""
PHOTOGRAPHS = ("LoadImage", "OmniPortraitFaceReference")
NOTE = 400


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Layout:
    """note: of the note. nodes: by id. groups: title and box of each."""

    note: Box
    nodes: dict[int, Box]
    groups: list[tuple[str, Box]]


def arrange(workflow: Workflow) -> Layout:
    nodes: dict[int, Box] = {}
    groups: list[tuple[str, int, int]] = []
    left, bottom = LEFT, 0
    for group in workflow.source["groups"]:
        x = left + MARGIN
        for column in group["columns"]:
            y = TOP + 48
            for number in column["nodes"]:
                node = workflow.nodes[number]
                nodes[number] = Box(x, y + TITLE, column["width"], height(node, folded=False))
                y += TITLE + height(node, folded=True) + GAP + grown(node, column["width"])
            bottom = max(bottom, y - GAP + MARGIN)
            x += column["width"] + COLUMN
        right = x - COLUMN + MARGIN
        groups.append((group["title"], left, right - left))
        left = right + GROUP
    lines = sum(1 + len(line) // 46 for line in workflow.source.get("note", "").splitlines())
    note = Box(0, TOP + TITLE, NOTE, min(max(200, 60 + 22 * lines), bottom - TOP - TITLE))
    return Layout(note, nodes, [(title, Box(x, TOP, width, bottom - TOP)) for title, x, width in groups])


def grown(node: Node, width: int) -> int:
    """By how much a square photograph outgrows its room in Nodes 2.0, where it is as wide as its node."""
    return max(0, width - PICTURE[node.type]) if node.type in PHOTOGRAPHS else 0


def height(node: Node, folded: bool) -> int:
    """Below the title bar; folded: with the inputs that Nodes 2.0 folds away, for which the classic look needs room."""
    if node.type == PRIMITIVE:
        return 106
    shape = node.shape
    rows = max(len(shape.sockets), len(shape.outputs)) * SLOT
    widgets = sum(TEXT if slot.tall else WIDGET for slot in shape.widgets if folded or not slot.folded)
    seeds = sum(WIDGET for slot in shape.widgets if slot.has_control)
    badge = 34 if node.type.startswith("OmniPortrait") or node.type in other_packs() else 0
    return rows + widgets + seeds + 20 + badge + PICTURE.get(node.type, 0)
