"""What ComfyUI tells the page about our nodes."""

from __future__ import annotations

import pytest

NODES = {
    "OmniPortraitPivotEncoderLoader": "Pivot Encoder Loader",
    "OmniPortraitFaceReference": "Face Reference",
    "OmniPortraitPivotConditioning": "Pivot Conditioning",
    "OmniPortraitFaceMaskFromAttention": "Face Mask From Attention",
    "OmniPortraitRBGuidance": "RB-Guidance",
    "OmniPortraitRBGuidanceKSampler": "RB-Guidance KSampler",
}


def test_every_folder_was_imported(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log
    assert {name for name in server.get("/object_info") if name.startswith("OmniPortrait")} == set(NODES)


@pytest.mark.parametrize("node_id", NODES)
def test_node_explains_itself(server, node_id):
    info = server.get(f"/object_info/{node_id}")[node_id]
    assert info["display_name"] == NODES[node_id]
    assert info["category"] == "OmniPortrait"
    assert len(info["description"]) > 30
    for group in info["input"].values():
        for name, (_, *options) in group.items():
            assert options and len(options[0].get("tooltip") or "") > 10, f"{name} has no tooltip"
    assert len(info["output_tooltips"]) == len(info["output"]) > 0
    assert all(len(tooltip or "") > 10 for tooltip in info["output_tooltips"])


@pytest.mark.parametrize("node_id", NODES)
def test_help_page_is_served(server, node_id):
    page = server.request(f"/extensions/comfyui-omniportrait/docs/{node_id}.md").decode()
    assert page.startswith("# ") and len(page) > 300
