"""Reference Attention on the real UNets, against core's own attention patch and against what must not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omniportrait.backbone.family import family_of
from omniportrait.guidance.reference_attention.attend import tokens_inside
from omniportrait.guidance.reference_attention.settings import COUNTS, Settings
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import ONE_CALL, assert_effective, attending, footprint, guide
from omniportrait.sampling import reference_tokens
from omniportrait.sampling.own_face import OwnFaces
from omniportrait.sampling.people import Person
from omniportrait.sampling.reference_attention import patch
from omniportrait.sampling.reference_head import head_mask
from omniportrait.sampling.reference_where import SeenFrom
from parameters import all_pairs

ALL = {"levels": "all"}


@pytest.fixture(autouse=True)
def no_cache():
    reference_tokens.forget_all()
    yield
    reference_tokens.forget_all()


def read_by_core(model, vae, record) -> dict:
    """The trial's way to a reference's tokens at each block."""
    kept = {}

    def write(n, context, value, extra):
        h, w = extra["activations_shape"][-2:]
        inside = tokens_inside(head_mask(record.face), (h, w))[0]
        kept[(*extra["block"], extra["block_index"])] = n[:, inside].clone()
        return n, context, value

    writing = model.clone()
    writing.set_model_attn1_patch(write)
    pixels = torch.nn.functional.interpolate(
        record.face.crop.movedim(-1, 1), size=(128, 128), mode="bicubic", antialias=True, align_corners=False
    )
    latent = vae.encode(pixels.clamp(0, 1).movedim(1, -1))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    small.sample(writing, record.reference_conditioning, latent=latent, noise=noise, cfg=1.0, **ONE_CALL)
    return kept


def appended_by_core(model, blocks, *references: dict):
    """The trial's way to append them: core's own attn1_patch, for every row."""

    def read(n, context, value, extra):
        key = (*extra["block"], extra["block_index"])
        if key not in blocks:
            return n, context, value
        more = [kept[key].expand(len(n), -1, -1) for kept in references]
        return n, torch.cat([context, *more], 1), torch.cat([value, *more], 1)

    reading = model.clone()
    reading.set_model_attn1_patch(read)
    return reading


@all_pairs(family=["sd15", "sdxl"], levels=["finest", "all"], times=[1, 2])
def test_it_is_what_core_makes_of_appended_tokens(family, vae, levels, times):
    record = small.record(family)
    positive = small.annotated(family)
    blocks = [key for key in family_of(family).self_attention(COUNTS[levels]) if key[0] != "middle"]
    reference = read_by_core(family, vae, record)
    expected = small.sample(appended_by_core(family, blocks, *[reference] * times), positive, cfg=1.0, **ONE_CALL)
    found = small.sample(attending(family, vae, strength=float(times), levels=levels), positive, cfg=1.0, **ONE_CALL)
    plain = small.sample(family, positive, cfg=1.0, **ONE_CALL)
    change = float((expected - plain).abs().max())
    assert change > 1e-4 * float(plain.abs().max())
    assert float((found - expected).abs().max()) < 1e-3 * change


def several(model, *numbers: int) -> list:
    """A conditioning with one person; a photograph for each number."""
    first, *others = map(small.face, numbers)
    face = replace(first, more=tuple(others))
    tensor, options = small.conditioning(model, 1)[0]
    return [[tensor, options | {small.RECORDS_KEY: (replace(small.record(model), face=face),)}]]


def test_two_photographs_at_strength_two_are_both_appended_once(sd15, vae):
    """The weight is shared among photographs, so twice the strength is core's plain appending of both."""
    both = [read_by_core(sd15, vae, replace(small.record(sd15), face=small.face(number))) for number in (0, 1)]
    blocks = [key for key in family_of(sd15).self_attention(COUNTS["all"]) if key[0] != "middle"]
    expected = small.sample(appended_by_core(sd15, blocks, *both), several(sd15, 0), cfg=1.0, **ONE_CALL)
    model = attending(sd15, vae, strength=2.0, **ALL)
    found, alone = (small.sample(model, several(sd15, *n), cfg=1.0, **ONE_CALL) for n in ((0, 1), (0,)))
    change = float((expected - alone).abs().max())
    assert change > 1e-4 * float(alone.abs().max())
    assert float((found - expected).abs().max()) < 1e-3 * change


def test_each_photograph_is_read_once_a_sigma_and_kept(sd15, vae, monkeypatch):
    """Also for the next run with fewer of them; where not all fit, one photograph does not push out another."""
    calls, original = [], reference_tokens.ReferenceTokens._call
    monkeypatch.setattr(reference_tokens.ReferenceTokens, "_call", lambda *args: calls.append(1) or original(*args))
    model = attending(sd15, vae, **ALL)
    picture = small.sample(model, several(sd15, 0, 1, 2, 1))
    assert len(calls) == 3 * small.STEPS
    small.sample(model, several(sd15, 2))
    assert len(calls) == 3 * small.STEPS
    monkeypatch.setattr(reference_tokens, "CACHE_BYTES", reference_tokens.held_bytes() // 2)
    reference_tokens.forget_all()
    small.sample(model, several(sd15, 0, 1, 2))
    calls.clear()
    assert torch.equal(small.sample(model, several(sd15, 0, 1, 2)), picture)
    assert len(calls) == 3 * small.STEPS - 3 * small.STEPS // 2


def test_a_photograph_without_a_latent_leaves_the_other(sd15, vae, monkeypatch):
    expected = small.sample(attending(sd15, vae, **ALL), several(sd15, 0))
    encode, bad = reference_tokens.encode_reference, small.face(1).photo_key

    def sometimes(vae_, face, *rest):
        return encode(vae_, face, *rest) * (float("nan") if face.photo_key == bad else 1)

    monkeypatch.setattr(reference_tokens, "encode_reference", sometimes)
    assert torch.equal(small.sample(attending(sd15, vae, **ALL), several(sd15, 1, 0)), expected)


def test_strength_zero_is_the_model_to_the_bit_and_leaves_nothing(family, vae):
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    before = footprint(family)
    assert torch.equal(small.sample(attending(family, vae, strength=0.0), positive), plain)
    assert_effective(small.sample(attending(family, vae, **ALL), positive), plain)
    assert torch.equal(small.sample(family, positive), plain)
    assert footprint(family) == before


def test_the_unconditional_rows_are_left_alone_unless_balanced(sd15, vae):
    """At cfg 0 the picture is the unconditional prediction alone."""
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive, cfg=0.0)
    assert torch.equal(small.sample(attending(sd15, vae, **ALL), positive, cfg=0.0), plain)
    assert_effective(small.sample(attending(sd15, vae, balance=True, **ALL), positive, cfg=0.0), plain)


def test_outside_of_the_window_nothing_changes(sd15, vae):
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive)
    between = attending(sd15, vae, start_percent=0.4, end_percent=0.45, **ALL)
    assert torch.equal(small.sample(between, positive, steps=2), small.sample(sd15, positive, steps=2))
    assert_effective(small.sample(attending(sd15, vae, end_percent=0.5, **ALL), positive), plain)


def test_the_cache_serves_the_next_run_with_the_same_bits(sd15, vae, monkeypatch):
    positive, model = small.annotated(sd15), attending(sd15, vae, **ALL)
    first = small.sample(model, positive)
    calls, original = [], reference_tokens.ReferenceTokens._call
    monkeypatch.setattr(reference_tokens.ReferenceTokens, "_call", lambda *args: calls.append(1) or original(*args))
    assert torch.equal(small.sample(model, positive), first) and not calls
    small.sample(attending(sd15, vae, seed=1, **ALL), positive)
    assert len(calls) == small.STEPS  # one a sigma


def test_a_batch_is_each_picture_alone(sd15, vae):
    positive, model = small.annotated(sd15), attending(sd15, vae, **ALL)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    both = small.sample(model, positive, batch=2, noise=noise)
    for number in range(2):
        alone = small.sample(model, positive, noise=noise[number : number + 1])
        torch.testing.assert_close(both[number : number + 1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_a_region_keeps_the_first_block_outside_of_it_plain(sd15, vae, monkeypatch):
    """What leaves the first attended block outside of the region is ComfyUI's own attention."""
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    block = family_of(sd15).self_attention(1)[0]
    seen = []

    def look(n, extra):
        if (*extra["block"], extra["block_index"]) == block:
            seen.append(n.clone())
        return n

    watched = sd15.clone()
    watched.set_model_attn1_output_patch(look)
    positive = small.annotated(sd15, region=left)
    small.sample(watched, positive, cfg=1.0, **ONE_CALL)
    small.sample(attending(watched, vae, where="region"), positive, cfg=1.0, **ONE_CALL)
    plain, attended = (each.view(1, 16, 16, -1) for each in (seen[0], seen[-1]))
    torch.testing.assert_close(attended[:, :, 8:], plain[:, :, 8:], rtol=1e-4, atol=1e-5)
    assert (attended[:, :, :8] - plain[:, :, :8]).abs().amax(-1).min() > 1e-4


def test_two_people_without_regions_never_share_a_token(sd15, vae, monkeypatch):
    tensor, options = small.conditioning(sd15, 1)[0]
    records = small.record(sd15, token=5, seed=0), small.record(sd15, token=9, seed=1)
    positive = [[tensor, options | {small.RECORDS_KEY: records}]]
    seen, original = [], SeenFrom.inside

    def spy(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(SeenFrom, "inside", spy)
    picture = small.sample(attending(sd15, vae, **ALL), positive)
    assert_effective(picture, small.sample(sd15, positive))
    masks = [each for each in seen if each.any()]
    assert masks and all(not (each[:, 0] & each[:, 1]).any() for each in masks)
    assert any(each[:, 0].any() for each in masks) and any(each[:, 1].any() for each in masks)


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_rb_guidance_sees_the_reference_in_either_order(sd15, vae, guided_pass):
    positive = small.annotated(sd15)
    settings = {"u": 1.0, "guided_pass": guided_pass}
    guided_first = attending(guide(sd15, vae, **settings)[0], vae, **ALL)
    guided_last = guide(attending(sd15, vae, **ALL), vae, **settings)[0]
    both = [small.sample(model, positive) for model in (guided_first, guided_last)]
    assert torch.equal(*both)
    assert_effective(both[0], small.sample(attending(sd15, vae, **ALL), positive))
    assert_effective(both[0], small.sample(guide(sd15, vae, **settings)[0], positive))


def test_a_vae_is_needed(sd15):
    with pytest.raises(ValueError, match="holds no VAE"):
        patch(sd15, None, Settings())


def test_an_areas_unconditional_copy_is_left_alone(sd15, vae):
    """ComfyUI copies the area, uuid and all, to the negative. At cfg 0 the picture is the unconditional one alone."""
    tensor, options = small.annotated(sd15)[0]
    positive = [[tensor, options | {"area": (8, 16, 0, 0), "strength": 1.0}], *small.conditioning(sd15, 4)]
    plain = small.sample(sd15, positive, cfg=0.0)
    found = small.sample(attending(sd15, vae, **ALL), positive, cfg=0.0)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))  # rows are batched otherwise
    assert_effective(small.sample(attending(sd15, vae, balance=True, **ALL), positive, cfg=0.0), plain)


@pytest.mark.parametrize("kind", ["merges", "appends"])
def test_other_nodes_tokens_are_left_to_them(sd15, vae, kind):
    """Token merging takes tokens of q, reference-only adds some to k and v: neither may be taken for ours."""

    def change(n, context, value, extra):
        if kind == "merges":
            return n[:, : n.shape[1] // 2], context, value
        return n, torch.cat([context, context[:, :3]], 1), torch.cat([value, value[:, :3]], 1)

    def back(n, extra):
        h, w = extra["activations_shape"][-2:]
        return n.repeat_interleave(h * w // n.shape[1], dim=1)

    other = sd15.clone()
    other.set_model_attn1_patch(change)
    other.set_model_attn1_output_patch(back)
    positive = small.annotated(sd15)
    plain = small.sample(other, positive)
    found = small.sample(attending(other, vae, **ALL), positive)
    if kind == "merges":  # the blocks are left alone, and the log says so
        assert torch.equal(found, plain)
    else:
        assert_effective(found, plain)


def test_a_vae_that_makes_nan_costs_the_likeness_not_the_picture(sd15, vae, monkeypatch):
    monkeypatch.setattr(vae, "encode", lambda pixels: torch.full((1, 4, 16, 16), float("nan")))
    positive = small.annotated(sd15)
    for where in ("whole picture", "own face"):
        assert torch.equal(small.sample(attending(sd15, vae, where=where), positive), small.sample(sd15, positive))


def test_a_run_longer_than_the_cache_keeps_what_it_has(sd15, vae, monkeypatch):
    positive, model = small.annotated(sd15), attending(sd15, vae, **ALL)
    small.sample(model, positive)
    monkeypatch.setattr(reference_tokens, "CACHE_BYTES", reference_tokens.held_bytes() // 2)
    reference_tokens.forget_all()
    first = small.sample(model, positive)
    assert 0 < reference_tokens.held_bytes() <= reference_tokens.CACHE_BYTES
    calls, original = [], reference_tokens.ReferenceTokens._call
    monkeypatch.setattr(reference_tokens.ReferenceTokens, "_call", lambda *args: calls.append(1) or original(*args))
    assert torch.equal(small.sample(model, positive), first) and len(calls) == 2  # of four sigmas


@pytest.mark.parametrize("where", ["whole picture", "own face"])
def test_perturbed_attention_at_our_blocks_is_not_hidden(sd15, vae, where):
    """Core's PAG at one of our blocks: in the call that it makes for itself, the block is its own."""
    import comfy.model_patcher
    import comfy.samplers

    block, seen = family_of(sd15).self_attention(1)[0][:2], []

    def perturbed(q, k, v, extra, mask=None):
        seen.append(v.shape[1] - extra["activations_shape"][-2] * extra["activations_shape"][-1])
        return v

    def post_cfg(args):
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), perturbed, "attn1", *block
        )
        (pag,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + (args["cond_denoised"] - pag) * 3

    positive, attended = small.annotated(sd15), attending(sd15, vae, where=where)
    without = small.sample(attended, positive)
    attended.set_model_sampler_post_cfg_function(post_cfg)
    assert_effective(small.sample(attended, positive), without)
    assert seen and not any(seen), "its call sees tokens that it does not expect"


def test_an_own_face_found_in_an_area_is_there_on_the_whole_picture(sd15, monkeypatch):
    """The person's conditioning sees the right half; its face is the left half of that."""
    record = small.record(sd15)
    person = Person(record.face, record, None, record.reference_conditioning)
    seen_from = SeenFrom({"own": (person,)}, "own face", (16, 16), family_of(sd15).sites(5, (16, 16)))
    monkeypatch.setattr(OwnFaces, "record", lambda *_: None)

    def left_half(self, uuid, size):
        inside = torch.zeros(1, 1, *size, dtype=torch.bool)
        inside[..., : size[1] // 2] = True
        return inside.flatten(2)

    monkeypatch.setattr(OwnFaces, "inside", left_half)
    seen_from.start({"positive": [{"uuid": "own", "area": (16, 8, 0, 8)}, {"uuid": "whole"}]}, {}, {}, False)
    own = seen_from.inside("own", [person], (16, 8), torch.device("cpu")).view(16, 8)
    whole = seen_from.inside("whole", [person], (8, 8), torch.device("cpu")).view(8, 8)
    assert own[:, :4].all() and not own[:, 4:].any()
    assert whole[:, 4:6].all() and not whole[:, :4].any() and not whole[:, 6:].any()
