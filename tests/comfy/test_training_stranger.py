"""How much more the denoiser errs with a stranger's reference, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from omniportrait.lab.bench.stranger import TIMESTEPS, Pair, by_person, excess, percent
from omniportrait.training.base import Prediction, Text
from omniportrait.training.data.plan import Slot
from omniportrait.training.loop import seeded
from omniportrait.training.pivot.step import Inputs, gather
from omniportrait.training.pivot.task import open_data
from training_world import config_of

COLUMN = 3


class Stand:
    """A base whose noise is wrong by the first number of the word, everywhere but outside the face, where it is far
    off; at t = 500 by twice as much in the first picture."""

    device, timesteps = torch.device("cpu"), 1000

    def __init__(self):
        self.calls: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def empty_text(self) -> Text:
        return Text(torch.zeros(77, 4), torch.zeros(0), 0)

    def predict(self, latents, noise, timesteps, rows, vectors, columns) -> Prediction:
        self.calls.append((latents, noise, int(timesteps[0])))
        wrong = rows[range(len(rows)), columns, 0].view(-1, 1, 1, 1).expand_as(noise).clone()
        wrong[:, :, 0] = 100.0
        if int(timesteps[0]) == 500:
            wrong[0] *= 2
        return Prediction(noise + wrong, torch.zeros(0))


def view(person: int, number: int, side: int = 4) -> Inputs:
    """A picture whose reference and text are the person's number; its face is all but the first row."""
    mask = torch.ones(1, side, side)
    mask[:, 0] = 0
    rows = torch.full((1, 77, 4), float(person))
    face = torch.full((1, 3, 8, 8), float(person))
    slots = [Slot(number, -1, number)]
    return Inputs(
        torch.zeros(1, 4, side, side), mask, face, rows, torch.zeros(1, 0), [COLUMN], torch.ones(1), slots, {}
    )  # fmt: skip


def knows(faces: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """A word that is wrong by 0.1 where face and text are one person's, and by 0.2 where they are not."""
    same = faces[:, 0, 0, 0] == text[:, 0]
    return torch.where(same[:, None], torch.tensor(0.1), torch.tensor(0.2)).expand_as(text)


def test_twice_the_error_is_four_times_its_square():
    pairs = [Pair(str(p), view(p, 10 * p + n), torch.full((3, 8, 8), 9.0)) for p in (1, 2) for n in range(3)]
    pairs.append(Pair("2", view(2, 40, side=6), torch.full((3, 8, 8), 9.0)))  # of another size: a batch of its own
    base = Stand()
    found = by_person(base, knows, pairs, seed=0)
    assert {name: len(rows) for name, rows in found.items()} == {"1": 3, "2": 4}
    rows = torch.tensor([row for rows in found.values() for row in rows])
    torch.testing.assert_close(rows, torch.full((7, len(TIMESTEPS)), math.log(4)))
    assert [len(latents) for latents, *_ in base.calls[:: 2 * len(TIMESTEPS)]] == [6, 1]


def test_both_references_meet_the_same_noise_and_each_timestep_its_own():
    base = Stand()
    excess(base, knows, view(1, 5), torch.full((1, 3, 8, 8), 9.0), seed=2)
    ones, others = base.calls[::2], base.calls[1::2]
    assert [t for *_, t in ones] == [t for *_, t in others] == list(TIMESTEPS)
    assert all(torch.equal(one[1], other[1]) for one, other in zip(ones, others, strict=True))
    assert len({float(noise.sum()) for _, noise, _ in ones}) == len(TIMESTEPS)


def test_per_cent_of_a_geometric_mean():
    logs = {"mean": (math.log(1.5) + math.log(2 / 3)) / 2, "low": math.log(0.98), "high": math.log(1.03), "people": 7}
    assert percent(logs) == {"mean": pytest.approx(0), "low": pytest.approx(-2), "high": pytest.approx(3), "people": 7}


@pytest.fixture(scope="module")
def views(world, base, tmp_path_factory) -> list[Inputs]:
    """Two pictures of one person."""
    samples = open_data(config_of(world, tmp_path_factory.mktemp("out"))).samples
    return [gather([samples[Slot(number, -1, number)]], base) for number in range(2)]


def test_a_real_base_against_the_error_of_the_predicted_picture(base, views):
    """One picture, one timestep at a time, by the picture that ComfyUI predicts, and its face's cells one by one."""
    inputs, _ = views
    strange = torch.zeros_like(inputs.faces)

    def encoder(faces, text):
        return text + 20 * faces.mean((1, 2, 3))[:, None]

    found = excess(base, encoder, inputs, strange, seed=4)[0].tolist()
    (slot,), (column,) = inputs.slots, inputs.columns
    for look, ratio in zip(TIMESTEPS, found, strict=True):
        random = seeded(4 + look, slot.epoch, slot.position, "noise")
        torch.randint(1000, (), generator=random), torch.rand(3, generator=random)
        noise = torch.randn(inputs.latents.shape[1:], generator=random)[None]
        sigma = float(base.sigma(torch.tensor([look])))
        errors = []
        for face in (inputs.faces, strange):
            rows = inputs.rows.clone()
            rows[0, column] += 20 * float(face.mean())
            with torch.no_grad():
                found_noise = base.predict(inputs.latents, noise, torch.tensor([look]), rows, inputs.pooled, [column])
            picture = inputs.latents + sigma * noise - sigma * found_noise.noise
            squares, mask = (picture - inputs.latents).square().double()[0], inputs.masks[0].double()
            places = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1])]
            errors.append(sum(float(mask[y, x] * squares[:, y, x].sum()) for y, x in places))
        assert ratio == pytest.approx(math.log(errors[1] / errors[0]), rel=1e-2) and abs(ratio) > 1e-3


def test_plain_text_errs_no_more_at_all(base, views):
    pairs = [Pair("a", each, torch.zeros_like(each.faces[0])) for each in views]
    found = by_person(base, lambda faces, text: text, pairs, seed=0)
    assert found == {"a": [[0.0] * len(TIMESTEPS)] * 2}
