"""Graphs of other packs: blocks that read what ComfyUI tells each call, and patches that bring texts of their own."""

from __future__ import annotations

import math
import types

import pytest
import torch
from omniportrait.backbone.attention import Recording
from omniportrait.backbone.regions import find_text
from omniportrait.guidance.reference_attention.settings import Settings as AttentionSettings
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, guided
from omniportrait.nodes.face_mask_from_attention import FaceMaskFromAttention
from omniportrait.sampling import reference_tokens
from omniportrait.sampling.reference_attention import patch as reference_attention

EQ6 = {"gamma": 3, "alpha": 2.0, "beta": 0.5, "refinement": "outer"}


def with_reading_blocks(model, read):
    """Every transformer block's forward replaced, as Advanced-ControlNet's reference-only does it; `read` is given what
    the block is told."""
    model = model.clone()
    for name, block in model.model.diffusion_model.named_modules():
        if type(block).__name__ != "BasicTransformerBlock":
            continue
        forward = type(block).forward

        def run(self, x, context=None, transformer_options=None, forward=forward):
            read(transformer_options, len(x))
            return forward(self, x, context, transformer_options)

        model.add_object_patch(f"diffusion_model.{name}.forward", types.MethodType(run, block))
    return model


def shape_of(told: dict, rows: int) -> dict:
    """What kind of thing each key holds; lists of the call's conditionings by how many rows each has."""
    each = {
        name: (type(value), rows / len(value)) for name, value in told.items() if name in ("uuids", "cond_or_uncond")
    }
    return {name: type(value) for name, value in told.items()} | each


@pytest.mark.parametrize("whose", ["guidance", "guidance, shared", "reference attention", "mask node"])
def test_a_block_is_told_in_our_calls_what_comfyui_always_tells(sd15, vae, whose):
    told: list[dict] = []
    model = with_reading_blocks(sd15, lambda options, rows: told.append(shape_of(options, rows)))
    positive = small.annotated(sd15)
    small.sample(model, positive, steps=1)
    always = told.pop()
    assert {"uuids", "cond_or_uncond", "sigmas", "sample_sigmas", "block", "activations_shape"} <= set(always)
    told.clear()
    if whose == "mask node":
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        with torch.inference_mode():
            FaceMaskFromAttention.execute(model, positive, latent, 0, 0.4, 1, 0.0, **EQ6)
    elif whose == "reference attention":
        reference_tokens.forget_all()
        with torch.inference_mode():
            attending = reference_attention(model, vae, AttentionSettings(where="own face"))
        small.sample(attending, positive)
    else:
        settings = {"guided_pass": "shared"} if "shared" in whose else {}
        assert_guided(guided(model, vae, positive, settings=settings)[1])
    for each in told:
        missing = {name: kind for name, kind in always.items() if each.get(name) != kind}
        assert not missing


def test_a_sigma_of_our_own_is_one_of_its_samplings(sd15, vae):
    """Packs look up where in sample_sigmas they are, and each conditioning's rows by its uuid."""
    seen = []

    def read(options, rows):
        assert float(options["sigmas"][0]) in options["sample_sigmas"].tolist()
        seen.append((float(options["sigmas"][0]), options["uuids"]))

    model = with_reading_blocks(sd15, read)
    assert_guided(guided(model, vae, small.annotated(sd15))[1])
    uuids = {sigma: {tuple(each) for at, each in seen if at == sigma} for sigma, _ in seen}
    assert None not in {each for found in uuids.values() for own in found for each in own}


def coupled(model, regions, keeps_prompt: bool, strength: float = 1.0):
    """Attention couple: each conditional row once for every region, with the region's text, and the results laid over
    each other by masks. regions: (text [1, T, D], share of the picture). keeps_prompt: the sampler's own prompt comes
    first, with the share that the regions leave (cgem156, ppm), or is dropped (tooling-nodes).
    """
    model = model.clone()
    texts = [text for text, _ in regions]
    shares = [share for _, share in regions]
    shares = [1 - sum(shares), *shares] if keeps_prompt else shares
    batch = []

    def before(q, k, v, extra):
        sides = extra["cond_or_uncond"]
        rows = len(q) // len(sides)
        batch.append((rows, list(sides)))
        length = math.lcm(k.shape[1], *(text.shape[1] for text in texts))
        queries, keys = [], []
        for side, own_q, own_k in zip(sides, q.chunk(len(sides)), k.chunk(len(sides)), strict=True):
            own_k = own_k.repeat(1, length // k.shape[1], 1)
            others = [text.to(q).repeat(rows, length // text.shape[1], 1) for text in texts]
            if side == 1:
                queries.append(own_q)
                keys.append(own_k)
                continue
            kept = [own_k * strength, *others] if keeps_prompt else others
            queries.append(own_q.repeat(len(kept), 1, 1))
            keys.append(torch.cat(kept))
        keys = torch.cat(keys)
        return torch.cat(queries), keys, keys

    def after(out, extra):
        rows, sides = batch.pop()
        parts, at = [], 0
        for side in sides:
            count = 1 if side == 1 else len(shares)
            own = out[at : at + rows * count].unflatten(0, (count, rows))
            weights = own.new_tensor([1.0] if side == 1 else shares).view(-1, 1, 1, 1)
            parts.append((own * weights).sum(dim=0))
            at += rows * count
        return torch.cat(parts)

    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(after)
    return model


def texts_of(model, *tokens: int) -> list[torch.Tensor]:
    return [small.conditioning(model, 30 + number, tokens=count)[0][0] for number, count in enumerate(tokens)]


WAYS = {
    "the prompt first": lambda own, others: (True, [(text, 0.0) for text in others]),
    "the prompt as the last region": lambda own, others: (False, [*((text, 0.0) for text in others), (own, 1.0)]),
}


@pytest.mark.parametrize(
    "name, way, guided_pass",
    [
        ("sd15", "the prompt first", "shared"),
        ("sd15", "the prompt as the last region", "full"),
        ("sdxl", "the prompt first", "full"),
    ],
)
def test_regions_that_weigh_nothing_change_nothing(name, vae, way, guided_pass):
    """The picture is then that of the prompt alone, so its guidance has to be, too: of the regions' rows, longer than
    the prompt's own, those of the prompt are taken, for each picture of a batch."""
    family = getattr(small, name)()
    positive, settings = small.annotated(family), {"guided_pass": guided_pass}
    keeps, regions = WAYS[way](positive[0][0], texts_of(family, 77, 154))
    options = {"batch": 2, "steps": 3}
    expected, trace = guided(family, vae, positive, settings=settings, **options)
    plain = small.sample(family, positive, **options)
    assert_effective(expected, plain)
    model = coupled(family, regions, keeps)
    assert (small.sample(model, positive, **options) - plain).abs().max() < 1e-5 * plain.abs().max()
    found, trace = guided(model, vae, positive, settings=settings, **options)
    assert_guided(trace)
    assert (found - expected).abs().max() < 0.01 * (expected - plain).abs().max()


@pytest.mark.parametrize("way", WAYS)
def test_reference_attention_finds_the_face_by_the_prompts_rows(sd15, vae, way):
    positive = small.annotated(sd15)
    keeps, regions = WAYS[way](positive[0][0], texts_of(sd15, 77, 154))

    def pictures(model):
        reference_tokens.forget_all()
        with torch.inference_mode():
            attending = reference_attention(model, vae, AttentionSettings(where="own face", strength=3.0))
        return small.sample(attending, positive)

    expected, plain = pictures(sd15), small.sample(sd15, positive)
    assert_effective(expected, plain)
    assert (pictures(coupled(sd15, regions, keeps)) - expected).abs().max() < 0.01 * (expected - plain).abs().max()


def test_a_prompt_with_a_weight_is_still_the_prompt(sd15, vae):
    """As ppm's node weighs its base by the conditioning's strength."""
    positive = small.annotated(sd15)
    model = coupled(sd15, [(text, 0.25) for text in texts_of(sd15, 77)], True, strength=0.8)
    assert_guided(guided(model, vae, positive)[1])


@pytest.mark.parametrize("whose", ["guidance", "reference attention"])
def test_regions_that_drop_the_prompt_say_so(sd15, vae, whose):
    positive = small.annotated(sd15)
    model = coupled(sd15, [(text, 0.5) for text in texts_of(sd15, 77, 77)], False)
    with pytest.raises(ValueError, match="regions .* take the place of the sampler's prompt, .* person's region to"):
        if whose == "guidance":
            guided(model, vae, positive)
        else:
            with torch.inference_mode():
                attending = reference_attention(model, vae, AttentionSettings(where="own face"))
            small.sample(attending, positive)


def test_keys_that_another_pack_appends_are_no_words_of_ours():
    """A picture's tokens behind the prompt's: the sixth is not the word in column 5. Against the softmax over all."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 77, 16, generator=generator)
    keys = torch.cat([text, torch.randn(2, 8, 16, generator=generator)], dim=1)
    (own,) = find_text(text, keys)
    recording = Recording(sizes={("input", 1, 0): (4, 4)}, columns={("input", 1, 0): own.columns})
    q = torch.randn(2, 16, 16, generator=generator)
    recording.cross["input", 1, 0] = (q, keys[own.rows], 2)
    recording.self_["input", 1, 0] = (q, q, 2)
    halves = [each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (q, keys)]
    expected = (halves[0] @ halves[1].mT / 8**0.5).softmax(dim=-1)[..., 5].mean(dim=1)
    torch.testing.assert_close(recording.token_map(5, 77).flatten(1), expected)
