"""The direction of the gradient: its arithmetic against closed forms, and a random model of the demo's shape."""

from __future__ import annotations

import sys

import comfy.sd
import comfy.supported_models
import pytest
import torch
from omniportrait.lab.bench import direction
from omniportrait.lab.bench.campaign import Campaign
from omniportrait.lab.bench.portraits import Case
from omniportrait.lab.testbed import checkpoints
from omniportrait.training.files import write_tensors


def rows(person: int, reference: str, t: int, error: torch.Tensor, effect: torch.Tensor) -> dict:
    """As Probe.sums has them, of a face of one row of cells."""
    plain = {"truth": error, t: torch.zeros_like(error), ("noisy", t): 2 * torch.ones_like(error)}
    face = torch.ones(error.shape[-2:], dtype=torch.bool)
    sums = direction.over_face(plain, {t: effect}, t, face)
    return {"person": person, "prompt": 0, "reference": reference, "t": t, **sums}


def test_an_effect_that_is_a_third_of_the_error_takes_all_of_it_away_at_three_times_its_strength():
    error = torch.randn(1, 4, 1, 9, generator=torch.Generator().manual_seed(0))
    made = [rows(0, direction.OWN, 600, error, error / 3)]
    removed, share = direction.best(made, 600)
    assert removed == pytest.approx(1)
    assert share == pytest.approx(float(error.norm()) / (2 * error.numel() ** 0.5))  # 3 e is r; the noise is 2 a cell


def test_the_best_strength_is_where_the_error_is_least():
    """Against a search."""
    generator = torch.Generator().manual_seed(1)
    pairs = [[torch.randn(1, 4, 1, 9, generator=generator) for _ in "re"] for _ in range(3)]
    made = [rows(i, direction.OWN, 450, r, e + r / 5) for i, (r, e) in enumerate(pairs)]

    def left(strength: float) -> float:
        return float(sum((r - strength * (e + r / 5)).square().sum() for r, e in pairs))

    tried = [left(s / 1000) for s in range(-2000, 2000)]
    removed, share = direction.best(made, 450)
    assert removed == pytest.approx(1 - min(tried) / left(0), abs=1e-5)
    assert share > 0


def test_a_gradient_that_points_away_has_no_strength():
    error = torch.ones(1, 4, 1, 9)
    assert direction.best([rows(0, direction.OWN, 300, error, -error)], 300) == (0.0, 0.0)


def test_own_minus_other_compares_the_same_person_and_t():
    error, across = torch.ones(1, 4, 1, 2), torch.tensor([1.0, -1.0]).expand(1, 4, 1, 2)
    made = [rows(p, direction.OWN, t, error, error) for p in (0, 1) for t in (300, 600)]
    made += [rows(p, direction.OTHER, t, error, across if p else error) for p in (0, 1) for t in (300, 600)]
    made += [rows(p, direction.ITSELF, t, error, -error) for p in (0, 1) for t in (300, 600)]
    own, over, itself = direction.cosines(made, (300, 600))
    assert (own.mean, over.mean, itself.mean) == pytest.approx((1, 0.5, -1))


def test_a_setting_is_compared_on_the_same_people():
    error, across = torch.ones(1, 4, 1, 2), torch.tensor([1.0, -1.0]).expand(1, 4, 1, 2)
    kinds = (direction.OWN, direction.OTHER, direction.ITSELF)
    worse = [rows(p, kind, 300, error, across) for p in (0, 1) for kind in kinds]
    better = [rows(1, kind, 300, error, error) for kind in kinds]
    better += [rows(0, kind, 300, error, error if kind == direction.ITSELF else across) for kind in kinds]
    own, minus_other, itself = direction.over(better, worse, (300,))
    assert (own.mean, own.low, own.high) == pytest.approx((0.5, 0, 1))
    assert (minus_other.mean, itself.mean) == pytest.approx((0, 1))
    *_, row = direction.against({"worse": worse, direction.OURS: better}, [(300,)]).splitlines()
    assert row.startswith("| worse | -0.500 [-1.000, +0.000] |") and row.endswith("| **-1.000** [-1.000, -1.000] |")


def test_the_face_alone_counts():
    error, effect = torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    plain = {"truth": error, 300: torch.zeros_like(error), ("noisy", 300): error}
    face = torch.tensor([[True, False], [False, False]])
    assert direction.over_face(plain, {300: effect}, 300, face)["along"] == 4


EVERYWHERE = {"background_masking": False, "ensemble": 1}
"""A random model's attention finds no face; and one noise does."""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A random model of half the demo's width: what is asked here hangs on no width."""
    file = tmp_path_factory.mktemp("narrow") / "base.safetensors"
    write_tensors(file, checkpoints.demo(model_channels=32))
    return file


@pytest.fixture
def words(narrow, random_model, tmp_path, monkeypatch) -> list[str]:
    """The command line for a random model, asked at two timesteps."""
    monkeypatch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
    monkeypatch.setattr(comfy.sd.VAE, "__init__", comfy.sd.VAE.__init__)
    monkeypatch.setattr(direction, "TIMES", (700, 300))
    pivot = random_model / "pivot.safetensors"
    return ["--checkpoint", str(narrow), "--encoder", str(pivot), "--store", str(tmp_path)]


@pytest.mark.slow
def test_a_real_model_is_asked(words):
    """The effect is linear in the gain, and asked anew at each t; with the wrong reference only the effect differs."""
    probe = direction.Probe(direction.parser().parse_args(words))
    plan = {"once": EVERYWHERE, "twice": {**EVERYWHERE, "gain": 2.0}, "held": {**EVERYWHERE, "every": 2}}
    made = probe.sums(Case(0, 0), plan, seed=0)
    for once, twice in zip(made["once"], made["twice"], strict=True):
        assert once["effect"] > 0
        assert twice["along"] == pytest.approx(2 * once["along"], rel=1e-2)
        assert twice["effect"] == pytest.approx(4 * once["effect"], rel=1e-2)
    for once, held in zip(made["once"], made["held"], strict=True):
        assert (once["effect"] == held["effect"]) == (once["t"] == 700)
    by = {(row["reference"], row["t"]): row for row in made["once"]}
    for t in (700, 300):
        own, other, itself = (by[kind, t] for kind in (direction.OWN, direction.OTHER, direction.ITSELF))
        assert own["error"] == other["error"] == itself["error"]
        assert len({own["effect"], other["effect"], itself["effect"]}) == 3


@pytest.mark.slow
def test_every_picture_is_asked_once(words, monkeypatch):
    """Two of one person are two; what is known is not asked again, and the page says how many there were."""
    monkeypatch.setattr(sys, "argv", ["direction.py"])
    options = direction.parser().parse_args([*words, "--identities", "1", "--prompts", "2"])
    campaign, plan = Campaign(options), {"everywhere": EVERYWHERE}
    first = direction.asked(campaign, plan)
    assert {row["prompt"] for row in first["everywhere"]} == {0, 1}
    assert len(first["everywhere"]) == 2 * 3 * 2  # prompts, references, t
    with (options.store / "rows.jsonl").open("a") as file:
        file.write('\n{"key": "cut sho')
    monkeypatch.setattr(direction.Probe, "__init__", None)
    assert direction.asked(campaign, plan) == first
    text = direction.page(campaign, first)
    assert "1 held-out people, 2 pictures each" in text and "| everywhere | own minus other |" in text
