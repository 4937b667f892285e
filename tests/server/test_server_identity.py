"""A person kept and brought back over HTTP, and photographs in lists and batches that show nobody."""

from __future__ import annotations

import itertools
import json

import numpy
import pytest
import safetensors.torch
import torch
from conftest import read_api
from omniportrait.demo import main
from omniportrait.demo.server import PromptError
from omniportrait.models.faces.identity_file import load
from PIL import Image

names = itertools.count()


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def photographs(server) -> list[str]:
    """Files of a face, of nobody, and of another face, each 512 pixels square."""
    noise = numpy.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=numpy.uint8)
    first, second = (Image.open(file).convert("RGB").resize((512, 512)) for file in saved(server))
    for name, picture in {"one.png": first, "none.png": Image.fromarray(noise), "two.png": second}.items():
        picture.save(server.base / "input" / name)
    return ["one.png", "none.png", "two.png"]


def saved(server):
    for name, picture in (("a.png", main.first_photo()), ("b.png", main.second_photo())):
        main.save_photo(picture, server.base / "input" / name)
        yield server.base / "input" / name


def kept(names: list[str], name: str, together: bool, **options) -> dict:
    """Photographs as a batch or as a list through Face Reference into files."""
    prompt = {str(k): node("LoadImage", image=file) for k, file in enumerate(names)}
    last = "0"
    for k in range(1, len(names)):
        prompt[f"join{k}"] = node("ImageBatch", image1=[last, 0], image2=[str(k), 0])
        last = f"join{k}"
    if not together:
        prompt["list"] = node("RebatchImages", images=[last, 0], batch_size=1)
        last = "list"
    face = {"order": "largest", "index": 0, "crop_factor": 2.0, "no_face": "skip", "mask_source": "auto"}
    prompt["face"] = node("OmniPortraitFaceReference", image=[last, 0], detector="auto", **(face | options))
    prompt["save"] = node("OmniPortraitSaveIdentity", face_reference=["face", 0], name=name, overwrite=False)
    return prompt


def written(outputs: dict) -> list[str]:
    return outputs["save"]["text"]


def test_a_batch_is_one_person_and_a_list_are_several(server, photographs):
    """What shows nobody is left out and told with its place; everybody else comes through."""
    folder = server.base / "models" / "omniportrait_identities"
    before = len(server.log.read_text())
    batch = server.run(kept(photographs, "family/batch", True))
    assert written(batch) == ["family/batch.safetensors"] and len(batch["save"]["images"]) == 2
    assert len(load(folder / "family" / "batch.safetensors").photographs) == 2
    told = server.log.read_text()[before:]
    assert "Face Reference skips one. Photograph 2 of 3: No face was found" in told
    several = server.run(kept(photographs, "list", False))
    assert sorted(written(several)) == ["list.safetensors", "list_00002.safetensors"]
    assert "Face Reference skips one. Entry 2 of 3 in the list: No face was found" in server.log.read_text()[before:]
    keys = {load(folder / name).photo_key for name in written(several)}
    assert keys == {each.photo_key for each in load(folder / "family" / "batch.safetensors").photographs}


def test_stop_names_the_place(server, photographs):
    with pytest.raises(PromptError, match="Entry 2 of 3 in the list: No face was found"):
        server.run(kept(photographs, "nobody", False, no_face="stop"))
    with pytest.raises(PromptError, match="Photograph 2 of 3: No face was found"):
        server.run(kept(photographs, "nobody", True, no_face="stop"))
    assert not list((server.base / "models" / "omniportrait_identities").glob("nobody*"))


def test_a_portrait_of_the_file_is_that_of_the_photograph(server, photographs):
    """The demo's whole chain, with its pivot encoder's embedding from the file, to the last bit of the latent."""
    prompt = read_api("omniportrait_demo")
    (guided,) = (key for key, each in prompt.items() if each["class_type"] == "OmniPortraitRBGuidanceKSampler")
    prompt = {key: prompt[key] for key in needed(prompt, guided)}
    by_kind = {each["class_type"]: key for key, each in prompt.items()}
    prompt[by_kind["LoadImage"]]["inputs"]["image"] = photographs[0]
    face = [by_kind["OmniPortraitFaceReference"], 0]
    latent = [by_kind["OmniPortraitRBGuidanceKSampler"], 0]
    encoder = [by_kind["OmniPortraitPivotEncoderLoader"], 0]
    prompt["latent"] = node("SaveLatent", samples=latent, filename_prefix="identity")
    prompt["save"] = node(
        "OmniPortraitSaveIdentity", face_reference=face, name="sitter", overwrite=True, pivot_encoder=encoder
    )
    outputs = server.run(prompt)
    assert written(outputs) == ["sitter.safetensors"]
    expected = latent_of(server, outputs)
    del prompt["save"], prompt[by_kind["LoadImage"]], prompt[face[0]]
    prompt["load"] = node("OmniPortraitLoadIdentity", identity_name="sitter.safetensors")
    prompt[by_kind["OmniPortraitPivotConditioning"]]["inputs"]["face_reference"] = ["load", 0]
    outputs = server.run(prompt)
    assert torch.equal(latent_of(server, outputs), expected)
    assert server.fetch(outputs["load"]["images"][0])[:4] == b"\x89PNG"


def needed(prompt: dict, key: str) -> set[str]:
    """A node and all that it depends on."""
    origins = (value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list))
    return {key}.union(*(needed(prompt, origin) for origin in origins))


def latent_of(server, outputs: dict) -> torch.Tensor:
    (file,) = outputs["latent"]["latents"]
    return safetensors.torch.load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "C:\\outside"])
def test_a_name_does_not_lead_out_of_the_folder(server, photographs, name):
    with pytest.raises(PromptError, match="cannot be the name of an identity"):
        server.run(kept(photographs[:1], name, True))
    assert not list(server.base.rglob("outside*"))


def test_hostile_files_are_refused_over_http(server, photographs):
    folder = server.base / "models" / "omniportrait_identities"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(3)}, folder / "pickled.safetensors")
    prompt = {"load": node("OmniPortraitLoadIdentity", identity_name="pickled.safetensors")}
    prompt["show"] = node("PreviewImage", images=["load", 1])
    with pytest.raises(PromptError, match="pickled.safetensors is a pickled checkpoint"):
        server.run(prompt)
    for name in ("../pivot_encoders/omniportrait_demo_pivot.safetensors", "nobody.safetensors"):
        prompt["load"]["inputs"]["identity_name"] = name
        with pytest.raises(PromptError, match="There is no identity"):
            server.run(prompt)


def test_the_page_is_told_of_a_new_file_and_shows_its_preview(server, photographs):
    (name,) = written(server.run(kept(photographs[:1], f"page{next(names)}", True)))
    (kind, options) = server.get("/object_info")["OmniPortraitLoadIdentity"]["input"]["required"]["identity_name"]
    assert name in (options["options"] if kind == "COMBO" else kind)
    folders = json.loads(server.request("/experiment/models"))
    assert "omniportrait_identities" in {each["name"] for each in folders}
    assert len(server.request(f"/experiment/models/preview/omniportrait_identities/0/{name}")) > 500
