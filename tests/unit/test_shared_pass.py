"""The rows that stay in ComfyUI's own call when the guided ones are taken out of it."""

from __future__ import annotations

import torch
from omniportrait.sampling.shared_call import split_call


def call(device: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Four conditionings of two pictures each. The text and ControlNet's residuals are on the CPU whatever the device
    of the picture is, as ComfyUI leaves them."""
    x = torch.arange(8.0, device=device).view(8, 1, 1, 1).expand(8, 4, 3, 3)
    named = {
        "c_crossattn": torch.arange(8.0).view(8, 1, 1).expand(8, 5, 2),
        "control": {"output": [torch.arange(8.0).view(8, 1), None]},
        "transformer_options": {"uuids": list("abcd"), "cond_or_uncond": [1, 0, 0, 0], "sigmas": "kept"},
    }
    return x, torch.arange(8.0, device=device), named


def test_the_others_go_their_way_and_come_back_in_their_places():
    x, t, named = call("cpu")

    def proceed(rows: torch.Tensor, times: torch.Tensor, arguments: dict) -> torch.Tensor:
        expected = torch.tensor([0.0, 1, 4, 5])  # the conditionings a and c
        assert torch.equal(rows[:, 0, 0, 0], expected) and torch.equal(times, expected)
        assert torch.equal(arguments["c_crossattn"][:, 0, 0], expected)
        assert torch.equal(arguments["control"]["output"][0][:, 0], expected)
        options = {"uuids": ["a", "c"], "cond_or_uncond": [1, 0], "sigmas": "kept"}
        assert arguments["transformer_options"] == options
        return -rows

    own = {1: torch.full((2, 4, 3, 3), 20.0), 3: torch.full((2, 4, 3, 3), 60.0)}
    made = split_call(proceed, x, t, named, own)
    assert made[:, 0, 0, 0].tolist() == [0, -1, 20, 20, -4, -5, 60, 60]


def test_text_on_the_cpu_and_a_picture_elsewhere():
    """A GPU's picture with a CPU's text, as it is in ComfyUI; "meta" stands for a device that is not the CPU."""
    x, t, named = call("meta")

    def proceed(rows: torch.Tensor, times: torch.Tensor, arguments: dict) -> torch.Tensor:
        assert rows.device.type == times.device.type == "meta" and len(rows) == len(times) == 4
        assert arguments["c_crossattn"][:, 0, 0].tolist() == [0, 1, 4, 5]
        return rows

    own = {1: torch.empty(2, 4, 3, 3, device="meta"), 3: torch.empty(2, 4, 3, 3, device="meta")}
    assert split_call(proceed, x, t, named, own).shape == x.shape
