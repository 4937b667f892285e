"""What ComfyUI tells the page about our nodes; tests/comfy/test_schemas.py has what each of them says."""

from __future__ import annotations

import pytest

NODES = {
    "OmniPortraitPivotEncoderLoader": "Pivot Encoder Loader",
    "OmniPortraitFaceReference": "Face Reference",
    "OmniPortraitSaveIdentity": "Save Identity",
    "OmniPortraitLoadIdentity": "Load Identity",
    "OmniPortraitPivotConditioning": "Pivot Conditioning",
    "OmniPortraitFaceMaskFromAttention": "Face Mask From Attention",
    "OmniPortraitReferenceAttention": "Reference Attention",
    "OmniPortraitRBGuidance": "RB-Guidance",
    "OmniPortraitRBGuidanceKSampler": "RB-Guidance KSampler",
    "OmniPortraitIdentityScore": "Identity Score",
    "OmniPortraitBestOfBatch": "Best of Batch",
    "OmniPortraitICPortraitLoader": "IC-Portrait Loader",
    "OmniPortraitICPortrait": "IC-Portrait",
    "OmniPortraitICConditioning": "IC-Portrait Conditioning",
    "OmniPortraitICPortraitSampler": "IC-Portrait Sampler",
    "OmniPortraitICFlow": "IC-Portrait Flow",
    "OmniPortraitPasteBack": "Paste Back",
    "OmniPortraitFineControlMap": "Fine Control Map (SFCM)",
    "OmniPortraitRBGuidanceReport": "RB-Guidance Report",
    "OmniPortraitFaceDetail": "Face Detail",
}


def test_every_folder_was_imported(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log
    known = {name: info for name, info in server.get("/object_info").items() if name.startswith("OmniPortrait")}
    assert {name: info["display_name"] for name, info in known.items()} == NODES


@pytest.mark.parametrize("node_id", NODES)
def test_help_page_is_served(server, node_id):
    page = server.request(f"/extensions/comfyui-omniportrait/docs/{node_id}.md").decode()
    assert page.startswith("# ") and len(page) > 300


def test_the_page_is_told_the_labels(server):
    """Pages that do not read an input's display name read the locale."""
    told = server.get("/i18n")["en"]["nodeDefs"]
    assert told["OmniPortraitRBGuidance"]["inputs"]["beta"]["name"] == "mask threshold"
