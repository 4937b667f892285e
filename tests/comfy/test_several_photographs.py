"""Several photographs of one person: the one that is most alike guides."""

from __future__ import annotations

from dataclasses import replace

import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_guided, change
from omniportrait.sampling import reference


def person(model, first: int, *others: int) -> list:
    """A conditioning with one person; a photograph for each number."""
    record = small.record(model)
    face = replace(small.face(first), more=tuple(small.face(other) for other in others))
    tensor, options = small.conditioning(model, 1)[0]
    return [[tensor, options | {small.RECORDS_KEY: (replace(record, face=face),)}]]


def test_the_most_alike_photograph_guides_wherever_it_stands(sd15, vae):
    alone = {number: change(sd15, vae, person(sd15, number)) for number in range(3)}
    alike = {number: trace.steps[0].similarity for number, (_, trace) in alone.items()}
    best = max(alike, key=alike.get)
    assert len(set(alike.values())) == 3
    for order in ((0, 1, 2), (2, 0, 1)):
        together, trace = change(sd15, vae, person(sd15, *order))
        assert_guided(trace, calls=1)
        assert trace.steps[0].similarity == alike[best]
        assert torch.equal(together, alone[best][0])
    assert len(reference._cache) == 3  # so that the next queue item computes none of them anew


def test_a_photograph_without_a_latent_leaves_the_others(sd15, vae, monkeypatch):
    """The VAE may make NaN of one photograph alone."""
    expected, _ = change(sd15, vae, person(sd15, 0))
    reference.forget_all()
    encode, bad = reference.encode_reference, small.face(1).photo_key

    def sometimes(vae_, face, *rest):
        return encode(vae_, face, *rest) * (float("nan") if face.photo_key == bad else 1)

    monkeypatch.setattr(reference, "encode_reference", sometimes)
    assert torch.equal(change(sd15, vae, person(sd15, 1, 0))[0], expected)
