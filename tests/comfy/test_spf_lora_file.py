"""The LoRA that SPF-Portrait writes: its keys, and the file that joins two."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.training.spf_portrait import lora_file
from omniportrait.training.spf_portrait.adapters import Adapters


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("sd15", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0"),
        ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q"),
    ],
)
def test_keys_are_those_that_others_write(family, key):
    model = getattr(small, family)()
    adapters = Adapters(model.model.diffusion_model, "lora", 2, 2.0, 0)
    keys = lora_file.keys_of(model, adapters.names)
    assert key in keys.values() and len(set(keys.values())) == len(adapters.names)
    lora_file.check(model, lora_file.content(adapters, keys), adapters.names)


def test_a_key_that_would_patch_another_layer_is_not_written(base, monkeypatch):
    """ComfyUI's map has some names twice for UNets whose levels are not equally deep."""
    import comfy.lora

    names = Adapters(base.family.net, "lora", 2, 2.0, 0).names
    keys = lora_file.keys_of(base.model, names)
    own = comfy.lora.model_lora_keys_unet

    def crossed(model, key_map):
        found = own(model, key_map)
        return found | {keys[names[0]]: found[keys[names[4]]]}

    monkeypatch.setattr(comfy.lora, "model_lora_keys_unet", crossed)
    with pytest.raises(ValueError, match=f"ComfyUI would load {keys[names[0]]} into .* instead of {names[0]}"):
        lora_file.keys_of(base.model, names)


def test_joined_file_is_the_sum():
    random = torch.Generator().manual_seed(0)

    def lora(rank: int, alpha: float | None, name: str) -> dict[str, torch.Tensor]:
        up, down = torch.randn(5, rank, generator=random).half(), torch.randn(rank, 4, generator=random).half()
        state = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        return state if alpha is None else state | {f"{name}.alpha": torch.tensor(alpha)}

    def product(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        up, down = (state[f"{name}.lora_{which}.weight"].float() for which in ("up", "down"))
        return up @ down * float(state.get(f"{name}.alpha", torch.tensor(float(len(down))))) / len(down)

    first, second = lora(2, 4.0, "a") | lora(2, None, "b"), lora(3, 3.0, "a") | lora(1, 1.0, "c")
    both = lora_file.joined(first, second)
    torch.testing.assert_close(product(both, "a"), product(first, "a") + product(second, "a"), rtol=1e-2, atol=2e-2)
    for name, state in (("b", first), ("c", second)):
        assert torch.equal(product(both, name), product(state, name))
    with pytest.raises(ValueError, match="different kinds"):
        lora_file.joined({"a.diff": torch.zeros(5, 4)}, lora(2, 2.0, "a"))


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        ("diffusion_model.{}", ("lora_A.weight", "lora_B.weight")),
        ("lora_unet_{}", ("lora_down.weight", "lora_up.weight")),
    ],
)
def test_another_programs_names_join_as_ours(key, ends):
    """Under two names for one layer ComfyUI would read one of the two alone."""
    model, random = small.sd15(), torch.Generator().manual_seed(0)
    adapters = Adapters(model.model.diffusion_model, "lora", 2, 2.0, 0)
    keys, first = lora_file.keys_of(model, adapters.names), {}
    for name in adapters.names:
        layer = key.format(name if key.startswith("diff") else name.replace(".", "_"))
        down, up = (value.shape for end, value in adapters.content(name).items() if end != "alpha")
        if down[0] != 2:
            down, up = up, down
        first[f"{layer}.{ends[0]}"] = torch.randn(down, generator=random).half()
        first[f"{layer}.{ends[1]}"] = torch.randn(up, generator=random).half()
    both = lora_file.joined(lora_file.renamed(model, first), lora_file.content(adapters, keys))
    lora_file.check(model, both, adapters.names)
    assert {len(value) for name, value in both.items() if name.endswith("lora_down.weight")} == {4}


@pytest.mark.parametrize("key", ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "x.dora_scale"])
def test_what_is_no_plain_lora_of_the_unet_is_refused(key):
    with pytest.raises(ValueError, match="is no plain LoRA of the UNet's layers"):
        lora_file.renamed(small.sd15(), {key: torch.zeros(1)})
