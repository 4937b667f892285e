"""Two people in one picture, and people whose place is given by hand."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, change, guided
from omniportrait.sampling import gradient as gradient_module
from omniportrait.sampling.people import ByHand

LINEAR = {"clip": 0.0, "gain": 1.0}
"""Without the cap the change is the gradient itself, so those of two people add up."""


def half(side: str) -> torch.Tensor:
    mask = torch.zeros(1, 128, 128)
    mask[..., slice(64) if side == "left" else slice(64, 128)] = 1
    return mask


def crowd(model, *records) -> list:
    """One conditioning that carries several people, as chained Pivot Conditioning nodes leave it."""
    tensor, options = small.conditioning(model, 1)[0]
    return [[tensor, options | {small.RECORDS_KEY: records}]]


def recorded_masks(monkeypatch) -> list[torch.Tensor]:
    """M_gen of each guided call: [K, B, h, w], filled as the run goes."""
    masks, original = [], gradient_module.face_maps

    def spy(*args):
        refined, found = original(*args)
        masks.append(found)
        return refined, found

    monkeypatch.setattr(gradient_module, "face_maps", spy)
    return masks


def test_two_regions_are_two_people_alone(family, vae):
    """Disjoint regions: the gradient of both is the sum of what each gives alone, each within its half."""
    left = small.record(family, token=5, seed=0, region=half("left"))
    right = small.record(family, token=9, seed=1, region=half("right"))
    both, trace = change(family, vae, crowd(family, left, right), LINEAR)
    assert_guided(trace, calls=1)
    first, trace_left = change(family, vae, crowd(family, left), LINEAR)
    second, trace_right = change(family, vae, crowd(family, right), LINEAR)
    assert_guided(trace_left, calls=1)
    assert_guided(trace_right, calls=1)
    assert first[..., :8].abs().max() > 0 and first[..., 8:].abs().max() == 0
    assert second[..., 8:].abs().max() > 0 and second[..., :8].abs().max() == 0
    assert torch.equal(trace.steps[0].mask, trace_left.steps[0].mask | trace_right.steps[0].mask)
    scale = float(both.abs().max())
    torch.testing.assert_close(both, first + second, rtol=1e-2, atol=1e-2 * scale)


def test_masks_of_two_people_never_meet(family, vae, monkeypatch):
    """No regions: each point belongs to the one whose map is higher there."""
    masks = recorded_masks(monkeypatch)
    records = small.record(family, token=5), small.record(family, token=9, seed=1)
    positive = crowd(family, *records)
    plain = small.sample(family, positive)
    masks_before = len(masks)
    picture, trace = guided(family, vae, positive, settings={"beta": 0.2})
    assert_effective(picture, plain)
    assert masks_before == 0 and len(masks) == len(trace.steps) > 0
    for found in masks:
        assert len(found) == 2 and found[0].any() and found[1].any()
        assert not (found[0] & found[1]).any()


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_a_run_with_two_people(sd15, vae, checkpointing):
    """Also where both gradients go back through one checkpointed pass."""
    left = small.record(sd15, token=5, region=half("left"))
    right = small.record(sd15, token=9, seed=1, region=half("right"))
    positive = crowd(sd15, left, right)
    plain = small.sample(sd15, positive)
    picture, trace = guided(sd15, vae, positive, settings={"checkpointing": checkpointing})
    assert_guided(trace)
    assert_effective(picture, plain)
    again, _ = guided(sd15, vae, positive, settings={"checkpointing": checkpointing})
    assert torch.equal(again, picture)
    assert torch.equal(small.sample(sd15, positive), plain)


def test_two_people_in_two_conditionings(sd15, vae):
    """Combine instead of a chain: each entry guides its own rows."""
    (first,) = crowd(sd15, small.record(sd15, token=5, region=half("left")))
    tensor, options = small.conditioning(sd15, 9)[0]
    second = [tensor, options | {small.RECORDS_KEY: (small.record(sd15, token=9, seed=1, region=half("right")),)}]
    moved, trace = change(sd15, vae, [first, second], LINEAR)
    assert_guided(trace, calls=1)
    assert moved[..., :8].abs().max() > 0 and moved[..., 8:].abs().max() > 0


def test_one_without_a_place_leaves_the_other_guided(sd15, vae, caplog):
    """A black region is reported; the second person is guided all the same."""
    nowhere = small.record(sd15, token=5, region=torch.zeros(1, 128, 128))
    right = small.record(sd15, token=9, seed=1, region=half("right"))
    moved, trace = change(sd15, vae, crowd(sd15, nowhere, right), LINEAR)
    alone, _ = change(sd15, vae, crowd(sd15, right), LINEAR)
    assert trace.skipped == {"no face found at 'woman'": 1}
    assert len([r for r in caplog.records if r.levelname == "WARNING" and r.name == "omniportrait"]) == 1
    assert alone.abs().max() > 0
    torch.testing.assert_close(moved, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_by_hand(family, vae):
    """A face and a mask, no Pivot Conditioning: the mask is the answer, whatever the attention says."""
    positive, by_hand = small.conditioning(family, 1), ByHand(small.face(), half("left"))
    plain = small.sample(family, positive)
    picture, trace = guided(family, vae, positive, by_hand=by_hand)
    assert_guided(trace)
    assert_effective(picture, plain)
    assert all(step.mask[:, :8].all() and not step.mask[:, 8:].any() for step in trace.steps)
    moved, trace = change(family, vae, positive, LINEAR, by_hand)
    assert_guided(trace, calls=1)
    assert moved[..., :8].abs().max() > 0 and moved[..., 8:].abs().max() == 0


def test_a_mask_by_hand_may_be_the_whole_picture(sd15, vae):
    """The limit on the mask's size is for searches that failed, not for what people ask for."""
    by_hand = ByHand(small.face(), torch.ones(1, 128, 128))
    moved, trace = change(sd15, vae, small.conditioning(sd15, 1), LINEAR, by_hand)
    assert len(trace.steps) == 1 and not trace.skipped and trace.steps[0].mask.all()
    assert moved.abs().amax(dim=(0, 1)).min() > 0


def test_records_come_before_what_is_given_by_hand(sd15, vae):
    positive, by_hand = small.annotated(sd15), ByHand(small.face(4), half("left"))
    with_hand, trace = guided(sd15, vae, positive, by_hand=by_hand)
    assert_guided(trace)
    assert torch.equal(with_hand, guided(sd15, vae, positive)[0])
