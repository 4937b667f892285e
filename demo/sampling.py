"""How the embedded model is sampled, wherever it is shown or measured: as the demo's workflow says."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

WORKFLOW = Path(__file__).parents[1] / "workflows" / "api" / "omniportrait_demo.json"
SAMPLING = ("sampler_name", "scheduler", "steps", "cfg")


@lru_cache
def workflow_inputs() -> dict[str, object]:
    """All values of the workflow's RB-Guidance KSampler; what is linked is left out."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    (own,) = (n["inputs"] for n in workflow.values() if n["class_type"] == "OmniPortraitRBGuidanceKSampler")
    return {name: value for name, value in own.items() if not isinstance(value, list)}


def sampling() -> dict[str, object]:
    """SAMPLING of the workflow's.

    The sampler puts noise back in at each step, which looks cleaner to the eye (docs/portrait_world.md).
    """
    return {name: workflow_inputs()[name] for name in SAMPLING}
