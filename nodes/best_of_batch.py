"""Best of Batch: the pictures of a batch that are most like a Face Reference."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.faces.likeness import by_likeness
from .identity_score import compared, heading, judged
from .schema import schema_of


class BestOfBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitBestOfBatch",
            "Best of Batch",
            "Sorts a batch of pictures by how alike their faces are to a reference face, keeps the best ones and says "
            "why. Pictures without a face come last.",
            *("likeness", "sort images", "pick best", "select image", "face similarity", "rank"),
        )

    @classmethod
    def execute(cls, image, face_reference, keep, embedder, threshold, face) -> io.NodeOutput:
        pictures, results, measure = judged(image, face_reference, embedder, threshold, face)
        order = by_likeness(results, measure)
        names = [f"{place}. picture {number + 1}" for place, number in enumerate(order, 1)]
        ranked = [results[number] for number in order]
        report = [f"{name}: {result.told(measure)}" for name, result in zip(names, ranked, strict=True)]
        kept = min(keep, len(order))
        report.insert(kept, f"kept {kept} of {len(order)}; the others:") if kept < len(order) else None
        sheet = compared(face_reference, [pictures[number] for number in order], ranked, measure, names)
        return io.NodeOutput(image[order[:keep]], image[order], sheet, "\n".join([heading(embedder, measure), *report]))
