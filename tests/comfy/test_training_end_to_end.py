"""docs/training.md's first example, from photographs to the node, on a checkpoint of SD1.5's form and a short tower."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import comfy.supported_models
import pytest
import torch
from accelerate.state import AcceleratorState
from omniportrait.demo.main import first_photo, save_photo, second_photo
from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig

TOWER = TowerConfig(image_size=28, patch_size=14, width=32, layers=1, head_width=8)
SETTINGS = (
    "tower={image_size: 28, patch_size: 14, width: 32, layers: 1, head_width: 8}", "data.resolution=128",
    "data.workers=0", "data.cached=true", "batch=2", "micro_batch=1", "steps=2", "warmup=1", "precision=fp32",
    "report_steps=2", "report_samples=1", "log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    """ComfyUI knows narrow checkpoints for as long as this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "server"))
        import standin_nodes

        patch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
        for module in [*sys.modules.values()]:
            if isinstance(known := getattr(module, "VISION_CONFIG_DICT", None), dict):
                patch.setitem(known, "num_hidden_layers", known["num_hidden_layers"])
        standin_nodes.register()
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, registered) -> Path:
    """Photographs, a checkpoint, and a tower as open_clip saves it."""
    import standin_files

    folder = tmp_path_factory.mktemp("photographs")
    (folder / "photos").mkdir()
    for name, photo in (("a", first_photo()), ("b", second_photo())):
        save_photo(photo, folder / "photos" / f"{name}.png")
    (folder / "photos" / "a.txt").write_text("a woman in an orange suit", encoding="utf-8-sig")
    (folder / "photos" / "b.txt").write_text("a portrait of a woman in uniform")
    standin_files.sd15(folder / "sd15.safetensors")
    torch.manual_seed(1)
    tower = PivotEncoder(PivotConfig("generic", (8,), TOWER)).tower.state_dict()
    torch.save({f"visual.{name}": value for name, value in tower.items()}, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture
def command(folder):
    """Run a command of training/ as the door does."""

    def call(name: str, *words: object) -> None:
        module = importlib.import_module(f"omniportrait.training.commands.{name}")
        if status := module.main([str(word) for word in words]):
            raise SystemExit(status)

    return call


@pytest.fixture
def train(folder, command, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    words = ["--config", "sd15", "--checkpoint", "~/sd15.safetensors", "--data", folder / "shards"]
    words += ["--out", folder / "run", *(word for each in SETTINGS for word in ("--set", each))]
    pretrained = ("--set", f"pretrained={folder / 'open_clip_pytorch_model.bin'}")
    return lambda *more, start=pretrained: command("pivot_encoder", *words, *start, *more)


def everything(folder: Path) -> dict[Path, bytes]:
    """What lies in a run's folder, but for the index of the shards."""
    files = [path for path in folder.rglob("*") if path.is_file() and "index" not in path.parts]
    return {path: path.read_bytes() for path in files}


@pytest.mark.slow
def test_photographs_become_an_encoder_that_loads(folder, command, train, tmp_path, monkeypatch, capsys, caplog):
    command("shards", folder / "photos", "--out", folder / "shards", "--workers", "1")
    assert "2 photographs in 1 new shards" in capsys.readouterr().out

    train("--dry-run", start=())
    told = capsys.readouterr().out
    for words in ("2, 0 left out", "the cache", "GiB at most", "samples a second", "2 steps:", "hours", "are kept"):
        assert words in told
    assert "weights begin at random" in caplog.text and "--set pretrained=" in caplog.text
    assert not everything(folder / "run")
    caplog.clear()

    train()
    told = capsys.readouterr().out
    assert "No sample was skipped." in told and "after 2 steps" in told and "begin at random" not in caplog.text
    before = everything(folder / "run")
    assert {path.name for path in before} > {"config.yaml", "000000002.pt", "000000002.jpg", "log.jsonl"}

    train("--dry-run", "--set", "batch=1")  # beside a run: with other settings, and without a trace
    with pytest.raises(SystemExit, match="add --resume"):
        train()
    with pytest.raises(SystemExit, match="begun with seed 0, but is to go on with 5"):
        train("--resume", "--set", "seed=5")
    assert everything(folder / "run") == before

    loaded = node_loads(folder / "run" / "pivot_encoder.safetensors", tmp_path, monkeypatch)
    assert loaded.header.step == 2 and loaded.header.config.family == "sd15"
    assert loaded.header.config.tower.mean == loaded.header.config.tower.std == (0.5, 0.5, 0.5)


def node_loads(file: Path, models: Path, monkeypatch):
    """What Pivot Encoder Loader makes of a file in models/pivot_encoders."""
    import folder_paths
    from omniportrait.nodes import register_model_folders
    from omniportrait.nodes.pivot_encoder_loader import PivotEncoderLoader

    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop("pivot_encoders", None)
    register_model_folders()
    (models / "pivot_encoders").mkdir()
    shutil.copy(file, models / "pivot_encoders")
    assert PivotEncoderLoader.validate_inputs(file.name) is True
    return PivotEncoderLoader.execute(file.name).args[0]
