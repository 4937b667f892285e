"""What ComfyUI sends its page about each node: every node and every socket explains itself, and saved graphs hold."""

from __future__ import annotations

import asyncio

import omniportrait
import pytest

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def infos() -> list[dict]:
    """As ComfyUI's /object_info has them."""
    extension = asyncio.run(omniportrait.comfy_entrypoint())
    return [node.GET_NODE_INFO_V1() for node in asyncio.run(extension.get_node_list())]


def test_every_node_has_a_name_a_place_and_a_description(infos):
    assert len(infos) == len({info["name"] for info in infos}) == len({info["display_name"] for info in infos}) > 5
    for info in infos:
        assert info["name"].startswith("OmniPortrait") and info["category"] == "OmniPortrait"
        assert len(info["description"]) > 30, info["name"]


def test_every_input_and_output_has_a_tooltip(infos):
    for info in infos:
        for group in (info["input"][kind] for kind in ("required", "optional") if kind in info["input"]):
            for name, (_, *options) in group.items():
                assert options and len(options[0].get("tooltip") or "") > 10, (info["name"], name)
        assert len(info["output_tooltips"]) == len(info["output"]) > 0
        assert all(len(tooltip or "") > 10 for tooltip in info["output_tooltips"]), info["name"]


def test_the_papers_numbers_are_folded_away_and_called_by_words(infos):
    """The names, which graphs hold, stay the paper's; symbol and equation are in the tooltip."""
    guided = [info for info in infos if "u" in info["input"]["required"]]
    assert len(guided) == 2
    for info in guided:
        for name in ("p", "u", "t0", "gamma", "alpha", "beta"):
            options = info["input"]["required"][name][1]
            assert options["advanced"] and len(options["display_name"].split()) == 2, name
            assert "Eq. " in options["tooltip"], name
        assert not info["input"]["required"]["strength"][1].get("advanced")


GUIDANCE = (
    "strength mode p u t0 gamma alpha beta refinement reduction gain clip sigma_scale background_masking feature_block "
    "ensemble reference_seed checkpointing guided_pass every"
)
OLDEST = {
    "OmniPortraitFaceReference": "order index crop_factor no_face mask_source detector",
    "OmniPortraitPivotEncoderLoader": "pivot_encoder_name",
    "OmniPortraitPivotConditioning": "text subject occurrence strength",
    "OmniPortraitRBGuidance": GUIDANCE,
    "OmniPortraitRBGuidanceKSampler": f"seed steps cfg sampler_name scheduler denoise {GUIDANCE}",
    "OmniPortraitFaceMaskFromAttention": "seed percent gamma alpha beta person refinement sigma",
}
"""Widgets of the first version's nodes, as its graphs hold them."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.mark.parametrize("name", OLDEST)
def test_graphs_of_the_first_version_still_run_and_open(infos, name):
    """A prompt is refused where a required input is missing, and the page gives a saved node's values by their place:
    whatever came later is optional and comes last."""
    (info,) = (info for info in infos if info["name"] == name)
    every = {**info["input"]["required"], **info["input"].get("optional", {})}
    widgets = [each for each, (kind, *_) in every.items() if isinstance(kind, list) or kind in WIDGETS]
    old = OLDEST[name].split()
    assert widgets[: len(old)] == old
    assert not set(widgets[len(old) :]) & set(info["input"]["required"])
