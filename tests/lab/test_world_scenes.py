"""Backgrounds and garments of the portrait world: repeatable, well formed, told apart, and off the face."""

from __future__ import annotations

import itertools
from functools import cache

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


@cache
def picture(name: str, seed: int, size: int) -> np.ndarray:
    """A background, drawn once for all tests."""
    return background(name, np.random.default_rng(seed), size)


@cache
def worn(garment: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """(covered, albedo) of the chest, once for all tests."""
    return wear(garment, colour, CHEST)


def signature(name: str, seed: int) -> np.ndarray:
    """What tells a place at a glance: 4 x 4 mean colours, and how much the picture changes across and down."""
    seen = picture(name, seed, 128)
    across, down = (np.abs(np.diff(seen.mean(2), axis=axis)).mean() * 8 for axis in (1, 0))
    return np.concatenate([cv2.resize(seen, (4, 4), interpolation=cv2.INTER_AREA).ravel(), [across, down] * 4])


def test_every_background_has_a_phrase_and_there_are_enough():
    assert list(BACKGROUNDS) == list(PHRASES) and len(BACKGROUNDS) >= 12
    assert all(phrase.split()[0] in {"in", "on", "at", "under"} for phrase in PHRASES.values())


def test_backgrounds_are_pictures_in_range_and_blurred():
    for name, size in itertools.product(BACKGROUNDS, (64, 100, 256)):
        seen = picture(name, 3, size)
        assert seen.shape == (size, size, 3) and seen.dtype == np.float32, (name, size)
        assert np.isfinite(seen).all() and seen.min() >= 0 and seen.max() <= 1, (name, size)
        if size == 256:
            fine = seen - cv2.GaussianBlur(seen, (0, 0), 1.2)
            assert (fine**2).mean() < 0.06 * seen.var(axis=(0, 1)).mean(), name


def test_a_seed_gives_one_picture_and_another_seed_another():
    for name, size in itertools.product(BACKGROUNDS, (64, 256)):
        seen = picture(name, 3, size)
        assert np.array_equal(seen, background(name, np.random.default_rng(3), size)), (name, size)
        assert np.abs(seen - picture(name, 4, size)).mean() > 0.01, (name, size)


def test_a_background_shows_the_same_place_at_any_size():
    for name in BACKGROUNDS:
        shrunk = cv2.resize(picture(name, 3, 256), (128, 128), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk - picture(name, 3, 128)).mean() < 0.01, name


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


def test_garments_cover_shoulders_and_chest_and_are_well_formed():
    for garment, colour in itertools.product(GARMENTS, COLOURS):
        covered, albedo = worn(garment, colour)
        assert covered.shape == (len(CHEST),) and covered.dtype == bool, (garment, colour)
        assert albedo.shape == CHEST.shape and albedo.dtype == np.float32, (garment, colour)
        assert np.isfinite(albedo).all() and albedo.min() >= 0 and albedo.max() <= 1, (garment, colour)
        assert wear(garment, colour, MUST_COVER)[0].all() and covered.mean() > 0.6, (garment, colour)


def test_garments_never_reach_the_face():
    head = np.random.default_rng(0).uniform((-1, -1.2, -1.6), (1, 1.5, 0.6), (5000, 3)).astype(np.float32)
    assert [garment for garment in GARMENTS if wear(garment, "red", head)[0].any()] == []


def test_garments_are_mirrored_in_what_they_cover():
    mirrored = CHEST * np.float32((-1, 1, 1))
    for garment in GARMENTS:
        assert np.array_equal(worn(garment, "blue")[0], wear(garment, "blue", mirrored)[0]), garment


def test_only_the_turtleneck_covers_the_throat():
    throat, sides = np.float32([(0, -1.6, -0.5)]), np.float32([(0.48, -1.5, -1.0), (-0.48, -1.5, -1.0)])
    assert [name for name in GARMENTS if wear(name, "red", throat)[0].any()] == ["turtleneck"]
    assert wear("turtleneck", "red", sides)[0].all()


def test_garments_of_one_colour_look_different():
    """At least a tenth of the chest shows another colour, or skin, for every pair."""
    for colour in ("red", "white", "black", "yellow"):
        looks = {}
        for garment in GARMENTS:
            covered, albedo = worn(garment, colour)
            looks[garment] = np.where(covered[:, None], albedo, np.float32((0.85, 0.66, 0.55)))
        for one, other in itertools.combinations(GARMENTS, 2):
            assert (np.abs(looks[one] - looks[other]).max(1) > 0.05).mean() > 0.1, (colour, one, other)


def test_colours_are_far_apart_and_rule_their_garment():
    assert len(COLOURS) >= 9
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 0.3
    for garment, (colour, rgb) in itertools.product(GARMENTS, COLOURS.items()):
        covered, albedo = worn(garment, colour)
        assert (np.abs(albedo[covered] - rgb).max(1) < 0.2).mean() > 0.15, (garment, colour)


def test_unknown_names_are_refused_in_one_sentence():
    for call in (
        lambda: background("moon", np.random.default_rng(0), 64),
        lambda: wear("toga", "red", CHEST),
        lambda: wear("suit", "beige", CHEST),
    ):
        with pytest.raises(ValueError, match=r"^There is no \w+ '\w+': choose one of [^.]+\.$"):
            call()
