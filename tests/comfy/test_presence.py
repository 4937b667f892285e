"""Whether the person is in the picture at all: the word's attention against what it has on the person's photographs."""

from __future__ import annotations

import pytest
import torch
from omniportrait import environment
from omniportrait.backbone.family import family_of
from omniportrait.guidance.omniportrait import mask
from omniportrait.guidance.omniportrait.settings import PRESENCE
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_guided, attending, guided
from omniportrait.sampling import gradient, reference, reference_tokens
from omniportrait.sampling.own_face import OwnFaces, sites_of


@pytest.fixture
def watched(monkeypatch):
    """Everything that a run compares: the picture's recordings, and the reference's features."""
    seen = {"rows": [], "references": []}
    maps, compute = gradient.face_maps, reference.compute

    def spy_maps(rows, *args):
        seen["rows"].append(rows)
        return maps(rows, *args)

    def spy_compute(*args):
        seen["references"].append(compute(*args))
        return seen["references"][-1]

    monkeypatch.setattr(mask, "STANDS_OUT", 1.0)  # random weights never stand out
    monkeypatch.setattr(gradient, "face_maps", spy_maps)
    monkeypatch.setattr(reference, "compute", spy_compute)
    return seen


def spread_by_hand(recording, column: int) -> torch.Tensor:
    """[B, N] of A_s A_c[..., m], by whole matrices, in shares of 1 / 77."""
    maps = []
    for key, (q, k, heads) in recording.cross.items():
        one, other = (each.double().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
        attention = (one @ other.mT / one.shape[-1] ** 0.5).softmax(dim=-1)
        maps.append(attention[..., column].mean(dim=1).unflatten(-1, recording.sizes[key]))
    mean, smoothed = torch.stack(maps).mean(dim=0), []
    for key, (q, k, heads) in recording.self_.items():
        one, other = (each.double().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
        matrix = (one @ other.mT / one.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
        sized = torch.nn.functional.interpolate(mean[:, None], recording.sizes[key], mode="bilinear")
        smoothed.append((matrix @ sized.flatten(1)[..., None])[..., 0])
    return torch.stack(smoothed).mean(dim=0) * 77


def prominence_by_hand(watched) -> list[float]:
    """Of each picture of the one call."""
    (rows,), (features,) = watched["rows"], watched["references"]
    heights = [max(each) for each in spread_by_hand(rows.recording, 5).tolist()]
    means = [sum(each) / len(each) for each in spread_by_hand(rows.recording, 5).tolist()]
    return [h**3 / m**2 / features.height for h, m in zip(heights, means, strict=True)]


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_below_the_floor_nobody_is_guided(sd15, vae, watched, guided_pass):
    """A floor a little below the picture's own prominence leaves it as it is, a little above it stays unguided."""
    positive, settings = small.annotated(sd15), {"guided_pass": guided_pass, "presence": 0.0, "ensemble": 2}
    options = {"sigmas": torch.tensor([1.5, 0.0]), "steps": 1}
    plain = small.sample(sd15, positive, **options)
    picture, trace = guided(sd15, vae, positive, settings=settings, **options)
    assert_guided(trace)
    (own,) = prominence_by_hand(watched)
    lower, _ = guided(sd15, vae, positive, settings=settings | {"presence": 0.99 * own}, **options)
    assert torch.equal(lower, picture)
    none, trace = guided(sd15, vae, positive, settings=settings | {"presence": 1.01 * own}, **options)
    assert trace.skipped == {"no face found at 'woman'": 1}
    rounding = 1e-5 * float(plain.abs().max()) if guided_pass == "shared" else 0
    torch.testing.assert_close(none, plain, rtol=0, atol=rounding)


def test_each_picture_of_a_batch_is_asked_by_itself(sd15, vae, watched):
    positive, options = small.annotated(sd15), {"sigmas": torch.tensor([1.5, 0.0]), "steps": 1, "batch": 2}
    guided(sd15, vae, positive, settings={"presence": 0.0}, **options)
    low, high = sorted(prominence_by_hand(watched))
    between = (low + high) / 2
    assert high > low * 1.0001
    _, trace = guided(sd15, vae, positive, settings={"presence": between}, **options)
    assert trace.skipped == {"no face found at 'woman'": 1}
    assert sorted(bool(each.any()) for each in trace.mask) == [False, True]


def test_a_picture_without_the_person_is_not_looked_at_again_once_it_is_settled(sd15, vae, watched):
    """Each call is counted all the same. Above t = 300 somebody may still appear."""
    _, trace = guided(sd15, vae, small.annotated(sd15), settings={"presence": 100.0, "u": 1.0}, steps=6)
    times = [step.t for step in trace.steps]
    asked = [t for t in times if t <= 600]
    assert len(times) == 6 and trace.skipped == {"no face found at 'woman'": len(asked)}
    assert len(watched["rows"]) == len([t for t in times if t > 300]) + 1 < 6


def test_a_word_that_the_model_does_not_read_misses_nobody(sd15, vae):
    """Random weights look everywhere alike, on the photograph, too."""
    _, trace = guided(sd15, vae, small.annotated(sd15), settings={"presence": 100.0})
    assert_guided(trace)


def test_a_face_by_hand_is_where_the_hand_says(sd15, vae):
    from omniportrait.sampling.people import ByHand

    by_hand = ByHand.given(small.face(), torch.ones(1, 8, 8))
    _, trace = guided(sd15, vae, small.conditioning(sd15, 1), settings={"presence": 100.0}, by_hand=by_hand)
    assert all(step.similarity == step.similarity for step in trace.steps)


def test_below_the_floor_no_part_of_the_picture_sees_the_reference(sd15, vae, monkeypatch):
    """Reference Attention in the own face, against heights and prominence by hand. Two calls: the first only looks."""
    looks, heights, found = [], [], []
    faces, record = OwnFaces._faces, reference_tokens.record_attention

    def spy_faces(self, uuid, recording, tokens):
        looks.append(recording)
        found.append(faces(self, uuid, recording, tokens))
        return found[-1]

    def spy_record(options, sites):
        recording = record(options, sites)
        heights.extend([recording] * (sites == sites_of(family_of(sd15), (16, 16))))  # others tell where the head is
        return recording

    monkeypatch.setattr(mask, "STANDS_OUT", 1.0)  # random weights never stand out
    monkeypatch.setattr(OwnFaces, "_faces", spy_faces)
    monkeypatch.setattr(reference_tokens, "record_attention", spy_record)
    positive, options = small.annotated(sd15), {"sigmas": torch.tensor([1.5, 0.9, 0.0]), "steps": 2}

    def attended(presence: float) -> torch.Tensor:
        return small.sample(
            attending(sd15, vae, where="own face", levels="all", presence=presence), positive, **options
        )

    attended(0.001)  # to look only
    (own,) = spread_by_hand(looks[0], 5).tolist()
    (known,) = spread_by_hand(heights[0], small.record(sd15).reference_token_index).tolist()
    prominence = max(own) ** 3 / (sum(own) / len(own)) ** 2 / max(known)
    anywhere = attended(0.0)
    assert len(heights) == 1, "a floor of 0 costs no call"
    assert torch.equal(attended(0.99 * prominence), anywhere) and found[-2][1].any()
    nowhere, plain = attended(1.01 * prominence), small.sample(sd15, positive, **options)
    assert not found[-2][1].any()
    change = float((anywhere - plain).abs().max())
    assert change > 1e-4 * float(plain.abs().max())
    assert float((nowhere - plain).abs().max()) < 1e-2 * change


@pytest.fixture(scope="module")
def tiles():
    """The embedded model, its VAE, and what an upscaler's tile gets of a bare wall and of a portrait."""
    from omniportrait.lab.bench.portraits import Case, conditioned, drawn, face_of, loaded, node, sitter
    from omniportrait.models.pivot.handle import load_handle

    import nodes as core

    weights = environment.ROOT / "demo" / "weights"
    model, clip, vae = loaded(weights / "omniportrait_demo.safetensors")
    encoder, case = load_handle(str(weights / "omniportrait_demo_pivot.safetensors")), Case(0, 0)
    positive = conditioned(clip, case, face_of([sitter(0).picture]), encoder)
    (negative,) = node(core.CLIPTextEncode, clip=clip, text="")
    wall = torch.tensor([0.38, 0.5, 0.63]).expand(1, 256, 256, 3).contiguous()
    portrait = torch.from_numpy(drawn(case).picture.copy())[None].float() / 255

    def sample(patched: object, name: str) -> torch.Tensor:
        (latent,) = node(core.VAEEncode, vae=vae, pixels={"wall": wall, "portrait": portrait}[name])
        options = (5, 3, 5.0, "euler", "normal", positive, negative, latent)
        with torch.inference_mode():  # 300 of 1000 timesteps of noise
            return core.common_ksampler(patched, *options, denoise=0.3)[0]["samples"]

    return model, vae, sample


@pytest.mark.slow
def test_the_embedded_model_knows_a_bare_wall_from_a_portrait(tiles):
    """With the nodes' defaults."""
    from omniportrait.lab.bench.portraits import defaults, settings_of
    from omniportrait.sampling.patch import patch

    (model, vae, sample), guided_calls = tiles, {}
    for name in ("wall", "portrait"):
        traces = []
        sample(patch(model, vae, settings_of(defaults()), observe=traces.append), name)
        guided_calls[name] = [step.similarity == step.similarity for step in traces[0].steps]
    assert set(guided_calls["wall"]) == {False} and set(guided_calls["portrait"]) == {True}


@pytest.mark.slow
def test_reference_attention_leaves_a_bare_wall_alone_and_a_portrait_as_it_was(tiles, caplog):
    """With a floor above the wall's prominence: this model has seen nothing but portraits, and its words stand out on
    a bare wall, too (docs/results/presence.md)."""
    model, vae, sample = tiles
    floor = 2.5
    assert floor > PRESENCE
    caplog.set_level("INFO")
    told, pictures = {}, {}
    for name in ("wall", "portrait"):
        for presence in (0.0, floor):
            caplog.clear()
            pictures[name, presence] = sample(attending(model, vae, where="own face", presence=presence), name)
            told[name, presence] = caplog.messages[-1]
        pictures[name, "plain"] = sample(model, name)
    assert told["wall", 0.0] == told["portrait", 0.0] == told["portrait", floor]
    assert told["portrait", floor] == "Reference Attention: 2 calls saw the reference"
    expected = "Reference Attention: 0 calls saw the reference; 3 times no face found at 'woman'"
    assert told["wall", floor] == expected
    assert torch.equal(pictures["portrait", floor], pictures["portrait", 0.0])
    changes = [float((pictures["wall", p] - pictures["wall", "plain"]).abs().max()) for p in (0.0, floor)]
    assert changes[1] < 0.01 * changes[0]
