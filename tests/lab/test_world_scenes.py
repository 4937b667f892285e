"""Backgrounds and garments of the portrait world: repeatable, well formed, told apart, and off the face."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from omniportrait.lab.world.backgrounds import BACKGROUNDS, PHRASES, background
from omniportrait.lab.world.garments import COLOURS, GARMENTS, wear

FRONT = np.stack(np.meshgrid(np.linspace(-2.4, 2.4, 61), np.linspace(-4.2, -1.9, 40)), -1).reshape(-1, 2)
CHEST = np.concatenate([FRONT, -0.45 + 0.3 * np.cos(FRONT[:, :1] * 0.6)], 1).astype(np.float32)
"""Points over the front of the chest, on a gently curved sheet."""
MUST_COVER = np.float32([(1.35, -1.6, -1.3), (-1.35, -1.6, -1.3), (1.2, -3.2, 0.1), (-1.2, -3.2, 0.1), (0, -4.1, 0.3),
                         (0, -2.8, -1.65)])  # fmt: skip
"""Both shoulders' ridges, both sides of the chest, its middle, and the back between the shoulder blades."""


def signature(name: str, seed: int) -> np.ndarray:
    """What tells a place at a glance: 4 x 4 mean colours, and how much the picture changes across and down."""
    picture = background(name, np.random.default_rng(seed), 128)
    across, down = (np.abs(np.diff(picture.mean(2), axis=axis)).mean() * 8 for axis in (1, 0))
    return np.concatenate([cv2.resize(picture, (4, 4), interpolation=cv2.INTER_AREA).ravel(), [across, down] * 4])


def test_every_background_has_a_phrase_and_there_are_enough():
    assert list(BACKGROUNDS) == list(PHRASES) and len(BACKGROUNDS) >= 12
    assert all(phrase.split()[0] in {"in", "on", "at", "under"} for phrase in PHRASES.values())


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("size", [64, 100, 256])
def test_background_is_repeatable_in_range_and_blurred(name, size):
    one, again, other = (background(name, np.random.default_rng(seed), size) for seed in (3, 3, 4))
    assert one.shape == (size, size, 3) and one.dtype == np.float32
    assert np.isfinite(one).all() and one.min() >= 0 and one.max() <= 1
    assert np.array_equal(one, again)
    assert np.abs(one - other).mean() > 0.01
    if size == 256:
        blurred = cv2.GaussianBlur(one, (0, 0), 1.2)
        assert ((one - blurred) ** 2).mean() < 0.06 * one.var(axis=(0, 1)).mean()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_background_shows_the_same_place_at_any_size(name):
    small, large = (background(name, np.random.default_rng(5), size) for size in (128, 256))
    assert np.abs(cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA) - small).mean() < 0.01


def test_backgrounds_are_told_apart_by_colour_and_change():
    """Nearest mean signature, fitted on other seeds, names nearly every picture."""
    names = list(BACKGROUNDS)
    means = np.stack([np.mean([signature(name, seed) for seed in range(12)], 0) for name in names])
    right = [
        names[np.linalg.norm(means - signature(name, seed), axis=1).argmin()] == name
        for name in names
        for seed in range(100, 106)
    ]
    assert np.mean(right) > 0.93


@pytest.mark.parametrize("garment", GARMENTS)
@pytest.mark.parametrize("colour", COLOURS)
def test_garment_covers_shoulders_and_chest_and_is_well_formed(garment, colour):
    covered, albedo = wear(garment, colour, CHEST)
    assert covered.shape == (len(CHEST),) and covered.dtype == bool
    assert albedo.shape == CHEST.shape and albedo.dtype == np.float32
    assert np.isfinite(albedo).all() and albedo.min() >= 0 and albedo.max() <= 1
    assert wear(garment, colour, MUST_COVER)[0].all()
    assert covered.mean() > 0.6


@pytest.mark.parametrize("garment", GARMENTS)
def test_garment_never_reaches_the_face(garment):
    head = np.random.default_rng(0).uniform((-1, -1.2, -1.6), (1, 1.5, 0.6), (5000, 3)).astype(np.float32)
    assert not wear(garment, "red", head)[0].any()


@pytest.mark.parametrize("garment", GARMENTS)
def test_garment_is_mirrored_in_what_it_covers(garment):
    mirrored = CHEST * np.float32((-1, 1, 1))
    assert np.array_equal(wear(garment, "blue", CHEST)[0], wear(garment, "blue", mirrored)[0])


def test_only_the_turtleneck_covers_the_throat():
    throat, sides = np.float32([(0, -1.6, -0.5)]), np.float32([(0.48, -1.5, -1.0), (-0.48, -1.5, -1.0)])
    assert [name for name in GARMENTS if wear(name, "red", throat)[0].any()] == ["turtleneck"]
    assert wear("turtleneck", "red", sides)[0].all()


@pytest.mark.parametrize("colour", ["red", "white", "black", "yellow"])
def test_garments_of_one_colour_look_different(colour):
    """At least a tenth of the chest shows another colour, or skin, for every pair."""
    looks = {}
    for garment in GARMENTS:
        covered, albedo = wear(garment, colour, CHEST)
        looks[garment] = np.where(covered[:, None], albedo, np.float32((0.85, 0.66, 0.55)))
    for one, other in itertools.combinations(GARMENTS, 2):
        assert (np.abs(looks[one] - looks[other]).max(1) > 0.05).mean() > 0.1, (one, other)


def test_colours_are_far_apart_and_rule_their_garment():
    assert len(COLOURS) >= 9
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 0.3
    for garment, (colour, rgb) in itertools.product(GARMENTS, COLOURS.items()):
        covered, albedo = wear(garment, colour, CHEST)
        assert (np.abs(albedo[covered] - rgb).max(1) < 0.2).mean() > 0.15, (garment, colour)


@pytest.mark.parametrize(
    "call",
    [
        lambda: background("moon", np.random.default_rng(0), 64),
        lambda: wear("toga", "red", CHEST),
        lambda: wear("suit", "beige", CHEST),
    ],
)
def test_unknown_names_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^There is no \w+ '\w+': choose one of [^.]+\.$"):
        call()
