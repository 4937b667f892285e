"""One guided step of the true architectures, at full width and depth, with random weights."""

from __future__ import annotations

import comfy.supported_models
import pytest
from omniportrait.backbone.family import family_of
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import ONE_CALL, assert_guided, guide
from omniportrait.sampling import passes

SIZE = (16, 16)
FULL = {
    "SD1.5": (comfy.supported_models.SD15, small.SD15_FULL, 859_520_964, 5),
    "SDXL": (comfy.supported_models.SDXL, small.SDXL_FULL, 2_567_463_684, 2),
}
"""ComfyUI's configuration, the shape, its published number of parameters and the output block of the features."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_one_guided_step(vae, monkeypatch, name):
    """Every wanted attention is recorded exactly once, and what comes out is finite and guided."""
    config, shape, parameters, block = FULL[name]
    model = small.unet(config, shape, windows=True)
    unet = model.model.diffusion_model
    assert sum(p.numel() for p in unet.parameters()) == parameters
    assert family_of(model).feature_block(-1) == block
    recordings, original = [], passes.run_rows

    def spy(*args):
        rows = original(*args)
        recordings.append(rows.recording)
        return rows

    monkeypatch.setattr(passes, "run_rows", spy)
    patched, traces = guide(model, vae, ensemble=1)
    predictions = []
    patched.set_model_sampler_post_cfg_function(lambda args: predictions.append(args["denoised"]) or args["denoised"])
    picture = small.sample(patched, small.annotated(model), size=SIZE, **ONE_CALL)
    assert_guided(traces[0], calls=1)
    sites = family_of(model).sites(block, SIZE)
    wanted = {("attn2", key) for key in sites.cross} | {("attn1", key) for key in sites.self_}
    (recording,) = recordings
    assert wanted and recording.hits == dict.fromkeys(wanted, 1)
    assert picture.isfinite().all()
    scaled = picture * model.model.latent_format.scale_factor
    moved = (scaled - predictions[0])[0].abs().amax(dim=0)
    mask = traces[0].steps[0].mask
    rounding = 1e-5 * float(scaled.abs().max())
    assert moved[mask].max() > 10 * rounding and moved[~mask].max() < rounding
