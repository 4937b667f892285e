"""A word for each person, made of what the renderer knows: how a model learns to be told who is shown.

Stable Diffusion's captions hold names, so its words can say who is in a picture, and a pivot encoder finds a place for
a new person among them. The portrait world's captions hold none. In training a person's *word* is therefore added to
the noun's text state: 60 numbers of the renderer's own description, laid into directions of the text's states that no
text uses. Nothing that is known has to give way, and what reads them begins at zero. Held-out people have a word too,
the *oracle word*: the upper bound of what any encoder can say in the noun's place. The description is training
equipment and no part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...demo.architecture import TEXT
from ...training.files import write_whole
from ..world.identity import HAIR_STYLES, Identity, identity
from ..world.mesh import mesh
from .text import tokenize

NOUNS = ("man", "woman")
EVERY = 6
"""Of the body's vertices one in so many tells the shape of a head."""
AXES = 28
"""Principal axes of the shape that a word tells."""
LOOKS = 32
"""Numbers of `appearance`."""
FARTHEST = 3.0
"""No number of a description is beyond this many deviations."""


def shape_size() -> int:
    """How many numbers `shape` gives."""
    return 3 * len(mesh().of("body")[::EVERY])


def shape(person: Identity) -> np.ndarray:
    """float32 [V * 3]: the resting head, decimetres."""
    return person.vertices[mesh().of("body")][::EVERY].astype(np.float32).ravel()


def appearance(person: Identity) -> np.ndarray:
    """float32 [LOOKS]: what is known of a person beside the head's shape and the moles."""
    brow = person.brow
    kinds = {detail.kind for detail in person.details}
    style = np.array([person.hair == name for name in HAIR_STYLES])
    brows = (brow.height, brow.thickness, brow.length, brow.arch, brow.angle, brow.strength)
    rest = (person.hairline, person.stubble, person.age, *brows, "freckles" in kinds, "scar" in kinds)
    return np.concatenate((person.skin, person.lips, person.iris, person.hair_colour, style, rest)).astype(np.float32)


def known(numbers: Sequence[int], seed: int = 0, cache: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`shape` [N, V * 3] and `appearance` [N, LOOKS] of people, kept in the file `cache` where one is named."""
    if cache and cache.is_file():
        kept = np.load(cache)
        if kept["numbers"].tolist() == list(numbers) and int(kept["seed"]) == seed:
            return torch.from_numpy(kept["shapes"]), torch.from_numpy(kept["appearances"])
    people = [identity(number, seed) for number in numbers]
    shapes, appearances = np.stack([shape(p) for p in people]), np.stack([appearance(p) for p in people])
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        told = {"numbers": np.array(numbers), "seed": seed, "shapes": shapes, "appearances": appearances}
        write_whole(cache, lambda file: np.savez(file, **told))
    return torch.from_numpy(shapes), torch.from_numpy(appearances)


class Words(nn.Module):
    """From people to what is added to the state of their noun: buffers that are set once (`fit`, `lay`), no parameters.

    A word is `unused @ description`, with `unused` [D, AXES + LOOKS] of orthonormal columns and a description's numbers
    of deviation 1.
    """

    def __init__(self, shape_size: int):
        super().__init__()
        size = AXES + LOOKS
        self.register_buffer("middle", torch.zeros(shape_size))
        self.register_buffer("axes", torch.zeros(AXES, shape_size))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("unused", torch.zeros(TEXT["hidden_size"], size))

    @torch.no_grad()
    def fit(self, shapes: torch.Tensor, appearances: torch.Tensor) -> None:
        """Take the principal axes of the shapes [N, V * 3], and each number's mean and deviation, from these people. An
        axis on which people hardly differ is not blown up to the size of the first ones."""
        self.middle.copy_(shapes.mean(0))
        _, _, axes = torch.linalg.svd(shapes - self.middle, full_matrices=False)
        self.axes[: len(axes)].copy_(axes[:AXES])
        told = self._told(shapes, appearances)
        self.centre.copy_(told.mean(0))
        least = torch.full_like(self.scale, 0.02)
        least[:AXES] = 0.1 * told[:, 0].std()
        self.scale.copy_(told.std(0).maximum(least))

    def taught(self, state: Path) -> Words:
        """Itself, as the run of `make words` whose state this is has set it."""
        self.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["words"])
        return self

    @torch.no_grad()
    def lay(self, states: torch.Tensor) -> None:
        """Find the directions that text states [N, 77, D] use least."""
        flat = states.flatten(0, 1).double()
        _, directions = torch.linalg.eigh(flat.T @ flat)  # by rising variance
        self.unused.copy_(directions[:, : self.unused.shape[1]])

    def _told(self, shapes: torch.Tensor, appearances: torch.Tensor) -> torch.Tensor:
        return torch.cat(((shapes - self.middle) @ self.axes.T, appearances), 1)

    @torch.no_grad()
    def descriptions(self, shapes: torch.Tensor, appearances: torch.Tensor) -> torch.Tensor:
        """[N, AXES + LOOKS] of people as `known` gives them."""
        return ((self._told(shapes, appearances) - self.centre) / self.scale).clamp(-FARTHEST, FARTHEST)

    def forward(self, descriptions: torch.Tensor) -> torch.Tensor:
        """What is added to the noun's state: [N, AXES + LOOKS] -> [N, D]."""
        return descriptions @ self.unused.T


class Sitters:
    """Who is in which of a set of pictures, with descriptions by `words`."""

    def __init__(self, records: Sequence[dict], words: Words, cache: Path | None = None, seed: int = 0):
        numbers, who = np.unique([record["identity"] for record in records], return_inverse=True)
        self.who = torch.from_numpy(who)
        self.known = known(numbers.tolist(), seed, cache)
        self.words = words

    def fit(self) -> None:
        self.words.fit(*self.known)

    def describe(self) -> None:
        """Compute the descriptions, once `words` is fitted."""
        self.descriptions = self.words.descriptions(*self.known)

    def words_of(self, pictures: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
        """[B, D] for pictures of these indices [B]; zeros where the caption is to do without, but for `share`."""
        told = torch.rand(len(pictures), generator=random) < share
        return self.words(self.descriptions[self.who[pictures]]) * told[:, None]


def noun_columns(tokens: torch.Tensor) -> torch.Tensor:
    """[B] where the noun stands in each row of tokens [B, 77]; 0, the start, in a caption without one."""
    nouns = tokenize(list(NOUNS))[:, 1].to(tokens.device)
    return torch.isin(tokens, nouns).float().argmax(1)


def with_words(states: torch.Tensor, words: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Text states [B, 77, D] with `words` [B, D] added at `columns` [B]; a row whose column is 0 stays as it is."""
    rows = torch.arange(len(states), device=states.device)
    words = words * (columns > 0)[:, None]
    return states.index_put((rows, columns), words.to(states.dtype), accumulate=True)
