"""What chance decides for a sample: noise, timestep, what is left out."""

from __future__ import annotations

import pytest
import torch
from omniportrait.training.data.plan import Slot
from omniportrait.training.loop import seeded
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot import step
from omniportrait.training.pivot.config import Objective
from omniportrait.training.pivot.step import Inputs, draw, timestep

COUNT = 20_000


def inputs_of(slots: list[Slot]) -> Inputs:
    nothing = torch.zeros(len(slots), 0)
    return Inputs(torch.zeros(len(slots), 2, 3, 1), nothing, nothing, nothing, nothing, [], nothing, slots, {})


def chances(timesteps: int, kind: str) -> torch.Tensor:
    """[timesteps] how often each came among COUNT samples."""
    slots = [Slot(0, position % 7, position) for position in range(COUNT)]
    drawn = draw(inputs_of(slots), timesteps, Objective(timesteps=kind), seed=5).timesteps
    assert drawn.dtype == torch.int64 and 0 <= drawn.min() and drawn.max() < timesteps
    return torch.bincount(drawn, minlength=timesteps) / COUNT


@pytest.mark.parametrize("kind", ["uniform", "noisy"])
@pytest.mark.parametrize("timesteps", [4, 1000])
def test_timesteps_have_their_chances(kind, timesteps):
    """Against the chance of each quarter in closed form, within four standard deviations."""
    found = chances(timesteps, kind).view(4, -1).sum(1)
    expected = torch.tensor([1, 3, 5, 7]) / 16 if kind == "noisy" else torch.full((4,), 0.25)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / COUNT).sqrt()).all()


def test_no_timestep_lies_beyond_the_last(monkeypatch):
    monkeypatch.setattr(step.torch, "rand", lambda *_, **__: torch.tensor(1 - 2**-24))  # the largest that it gives
    assert int(timestep(1000, "noisy", torch.Generator())) == 999


def test_uniform_draws_are_what_they_always_were():
    """Number by number, so that runs of older versions can be repeated and resumed."""
    slots = [Slot(3, 0, 5), Slot(1, 2, 9)]
    found = draw(inputs_of(slots), 1000, Objective(drop_both=0.3, drop_id=0.4, face_only=0.5), seed=11)
    for row, slot in enumerate(slots):
        random = seeded(11, slot.epoch, slot.position, "noise")
        assert int(found.timesteps[row]) == int(torch.randint(1000, (), generator=random))
        both, alone, inside = (torch.rand(3, generator=random) < torch.tensor([0.3, 0.4, 0.5])).tolist()
        told = found.without_both[row], found.without_id[row], found.face_only[row]
        assert list(map(bool, told)) == [both, alone and not both, inside]
        assert torch.equal(found.noise[row], torch.randn(2, 3, 1, generator=random))


def test_noisy_draws_hang_on_their_place_alone():
    slots = [Slot(3, 0, position) for position in range(6)]
    whole, part = (draw(inputs_of(each), 1000, Objective(timesteps="noisy"), seed=1) for each in (slots, slots[4:]))
    assert torch.equal(whole.timesteps[4:], part.timesteps) and torch.equal(whole.noise[4:], part.noise)
    assert len(set(whole.timesteps.tolist())) > 1


def test_recipes_draw_as_the_paper_does_except_the_embedded_models():
    papers = [settings.read(name).objective for name in ("sd15", "sdxl")]
    assert {(each.timesteps, each.picture_error) for each in papers} == {("uniform", 0.0)}
    ours = settings.read("demo").objective
    assert (ours.timesteps, ours.picture_error, ours.drop_both, ours.drop_id) == ("noisy", 100.0, 0.0, 0.0)
