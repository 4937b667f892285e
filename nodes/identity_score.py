"""Identity Score: how alike the face of a picture is to a Face Reference."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..models.faces.comparison import draw_comparison
from ..models.faces.detector import AUTO, choose_backend
from ..models.faces.likeness import Likeness, likeness, reference_vector, with_threshold
from ..models.faces.photo import prepare_photo
from ..models.faces.recogniser import BUILT_IN, Measure, load_recogniser
from ..models.faces.reference import FaceReference
from .face_reference import facexlib_folders
from .schema import schema_of

FOLDER = "face_embedders"


class IdentityScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = schema_of(
            "OmniPortraitIdentityScore",
            "Identity Score",
            "Says how alike the face in each picture is to a reference face, and whether it passes for the same "
            "person. The built-in embedder needs no download.",
            *("likeness", "face similarity", "face distance", "identity", "compare faces", "sim"),
        )
        for output in schema.outputs[:2]:
            output.is_output_list = True
        return schema

    @classmethod
    def execute(cls, image, face_reference, embedder, threshold, face) -> io.NodeOutput:
        pictures, results, measure = judged(image, face_reference, embedder, threshold, face)
        names = [f"picture {number}" for number in range(1, len(results) + 1)]
        sheet = compared(face_reference, pictures, results, measure, names)
        report = [f"{name}: {result.told(measure)}" for name, result in zip(names, results, strict=True)]
        return io.NodeOutput(
            [result.value for result in results],
            [result.same for result in results],
            sheet,
            "\n".join([heading(embedder, measure), *report]),
        )


def judged(
    image: torch.Tensor, face_reference: FaceReference, embedder: str, threshold: float, face: str
) -> tuple[list[torch.Tensor], list[Likeness], Measure]:
    """The pictures [3, H, W] of an IMAGE, the likeness of each, and the measure with the threshold that counts."""
    recogniser = load_recogniser(path_of(embedder))
    detector = choose_backend(AUTO, facexlib_folders()).detector
    target = reference_vector(recogniser, face_reference)
    pictures = [prepare_photo(image[number : number + 1]) for number in range(image.shape[0])]
    results = [likeness(recogniser, detector, target, picture, face) for picture in pictures]
    return pictures, *with_threshold(results, recogniser.measure, threshold)


def compared(
    reference: FaceReference,
    pictures: list[torch.Tensor],
    results: list[Likeness],
    measure: Measure,
    names: list[str],
) -> torch.Tensor:
    """IMAGE [B, h, w, 3], one picture for each."""
    rows = zip(pictures, results, names, strict=True)
    return torch.stack([draw_comparison(reference, picture, result, measure, name) for picture, result, name in rows])


def heading(embedder: str, measure: Measure) -> str:
    """The first line of a report."""
    better = "at most" if measure.kind == "distance" else "at least"
    return f"{embedder}: {measure.kind}; the same person {better} {measure.threshold:g}"


def path_of(embedder: str) -> Path | None:
    """The file of models/face_embedders; None for the built-in one. ValueError says where it belongs."""
    import folder_paths

    if embedder == BUILT_IN:
        return None
    found = folder_paths.get_full_path(FOLDER, embedder)
    if found is None:
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        raise ValueError(
            f'There is no face embedder "{embedder}": put the file into {folders}, or choose "{BUILT_IN}".'
        )
    return Path(found)
