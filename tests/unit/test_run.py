"""The door and the demo's preparations, without ComfyUI."""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import sys
import threading
from pathlib import Path

import pytest
from omniportrait import environment, run
from omniportrait.demo import client, server


def test_pack_is_loaded_once_and_its_root_stays_off_the_path():
    assert environment.load_pack() is sys.modules["omniportrait"]
    assert str(environment.ROOT) not in sys.path


def test_environment_follows_the_lock_file(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    monkeypatch.setattr(environment, "LOCK", lock)
    lock.write_text("torch==1\n")
    before = environment.environment_folder()
    assert before == environment.environment_folder()
    lock.write_text("torch==2\n")
    assert environment.environment_folder() != before


def test_interrupted_installation_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "HOME", tmp_path)
    part = environment.environment_folder().with_name(environment.environment_folder().name + ".part")
    part.mkdir(parents=True)
    (part / "half").touch()
    monkeypatch.setattr(environment, "checked", lambda command, what: None)

    def interrupted(python):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "install_packages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.ensure_environment()
    assert not environment.environment_folder().exists() and not (part / "half").exists()
    monkeypatch.setattr(environment, "install_packages", lambda python: None)
    monkeypatch.setattr(environment, "install_comfyui", lambda python, folder: folder.mkdir())
    assert environment.ensure_environment().is_relative_to(environment.environment_folder())
    assert environment.environment_folder().is_dir() and not part.exists()


def test_lock_is_exact():
    pins = [line.split(";")[0].strip() for line in environment.LOCK.read_text().splitlines() if line and line[0] != "#"]
    assert len(pins) > 100
    assert all(pin.count("==") == 1 and "*" not in pin for pin in pins)


@pytest.mark.parametrize("broken", ["nowhere", "."])
def test_wrong_comfyui_is_named(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / broken))
    with pytest.raises(SystemExit, match="not a ComfyUI folder"):
        environment.find_comfyui()


def words_of(*words: str) -> list[list[str]]:
    """The commands that the door starts for these words, without the Python."""
    commands = run.command_lines(*run.parse([*words]), Path("python"))
    return [[str(word) for word in command[1:]] for command in commands]


def test_test_arguments_choose_the_tests():
    """All of them are shared between two processes; what is named runs in one."""
    ((*_, places, shared, first),) = words_of("test", "-x")
    assert (places, shared, first) == ("tests", "--side-by-side", "-x")
    ((*_, shared, option, word),) = words_of("test", "-k", "training")  # no path, though there is such a folder
    assert (shared, option, word) == ("--side-by-side", "-k", "training")
    ((*_, option, places, first),) = words_of("test", "tests/unit", "-x")
    assert (option, places, first) == ("--rootdir=tests", "tests/unit", "-x")


def test_lint_asks_for_rules_and_format():
    check, form = words_of("lint", "--fix")
    assert check == ["-m", "ruff", "check", str(environment.ROOT), "--fix"]
    assert form == ["-m", "ruff", "format", "--check", str(environment.ROOT)]


def test_here_works_in_the_python_that_was_started(monkeypatch, tmp_path):
    """As torchrun and accelerate start it, on any machine: nothing is installed and nothing is started anew."""
    began = []
    monkeypatch.setattr(environment, "ensure_environment", lambda: pytest.fail("an environment was made"))
    monkeypatch.setattr(run, "run_inside", lambda command, tools: began.append(command) or 0)
    monkeypatch.setattr(run, "work", lambda options, rest: began.append((options.name, rest)) or 0)
    monkeypatch.setattr(
        sys, "argv", ["run.py", "train", "pivot-encoder", "--here", "--config", "sdxl", "--stop-at", "2"]
    )
    assert run.main() == 0
    assert began.pop() == ("pivot-encoder", ["--config", "sdxl", "--stop-at", "2"])
    monkeypatch.setattr(sys, "argv", ["run.py", "test", "--here", "-x"])
    assert run.main() == 0
    assert began.pop()[0] == Path(sys.executable)


def test_no_parser_of_ours_guesses_options():
    """`--se` for `--seed` today is `--set` or an error tomorrow."""
    found = 0
    for place in (environment.ROOT / "run.py", *(environment.ROOT / room for room in ("demo", "lab", "training"))):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                makes = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if makes.endswith("ArgumentParser"):
                    found += 1
                    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                    assert given.get("allow_abbrev") == "False", f"{file}:{call.lineno}"
                elif makes.endswith(".add_parser"):
                    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                    assert given.get("allow_abbrev") == "False" or None in given, f"{file}:{call.lineno}"
    assert found > 10
    for words in (
        ["demo", "--see", "3"],
        ["serve", "--po", "1"],
        ["test", "--comfy", "x"],
        ["bench", "soak", "--pyth"],
    ):
        options, rest = run.parse(words)
        assert (rest, options.comfyui) == ([word for word in words[1:] if word != "soak"], None)


@pytest.fixture
def another_comfyui(tmp_path, monkeypatch):
    """A ComfyUI folder with requirements of its own, as --comfyui names it."""
    folder = tmp_path / "comfyui"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("NumPy>=1\ntorch\n\n#non essential dependencies:\nno-such-extra\n")
    monkeypatch.setattr(environment, "HOME", tmp_path / "home")
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    return folder


@pytest.mark.parametrize("command", run.OWN_CORE)
def test_another_comfyui_is_imported_by_its_own_python(another_comfyui, monkeypatch, tmp_path, command):
    """What that Python lacks for the tests goes into a folder of its own, nothing into its packages."""
    (tmp_path / "lock").write_text(f"numpy==0\nno-such-tool==1\nnvidia-none==1\n# {command}\n")
    monkeypatch.setattr(environment, "LOCK", tmp_path / "lock")
    installed = []
    monkeypatch.setattr(
        environment, "install_packages", lambda python, lock, *more: installed.append((python, lock.read_text(), more))
    )
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    options = argparse.Namespace(command=command, name="soak")
    python, tools = run.python_for(options)
    assert python == Path(sys.executable) and run.is_ours(python)
    ((by, lock, (option, place)),) = installed
    assert (by, lock.split(), option) == (python, ["no-such-tool==1"], "--target")
    assert tools.is_dir() and place.parent == tools.parent
    assert run.python_for(options) == (python, tools) and len(installed) == 1


def test_a_python_of_another_comfyui_is_named(another_comfyui, monkeypatch):
    (another_comfyui / "requirements.txt").write_text("no-such-core==1\ntorch\n")
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    with pytest.raises(SystemExit, match="lacks no-such-core, which .*comfyui needs; name .* by --python PATH"):
        run.python_for(argparse.Namespace(command="test"))


def test_every_command_is_a_module_with_a_main():
    for group, modules in run.COMMANDS.items():
        for name, module in modules.items():
            file = environment.ROOT.joinpath(*module.split(".")).with_suffix(".py")
            text = file.read_text(encoding="utf-8")
            assert "def main(words: list[str])" in text or "import main" in text, file
            assert run.module_of(group, name) == run.module_of(group, name.replace("-", "_")) == module


@pytest.mark.parametrize("name", [None, "pivot encoder", "../run"])
def test_wrong_command_is_told_what_there_is(name):
    with pytest.raises(SystemExit, match="there are: .*pivot-encoder"):
        run.module_of("train", name)


def test_link_replaces_what_was_there_and_leaves_the_source(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    target = tmp_path / "base" / "target"
    server.link(first, target)
    server.link(second, target)
    assert (target / "name").read_text() == "second"
    assert (first / "name").read_text() == "first"


def test_link_onto_itself_loses_nothing(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("weights")
    server.link(file, file)
    assert file.read_text() == "weights" and not file.is_symlink()


def test_link_copies_where_links_are_forbidden(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise OSError("no privilege")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    monkeypatch.setattr(server.os, "link", forbidden)
    source = tmp_path / "source"
    source.mkdir()
    (source / "name").write_text("text")
    server.link(source, tmp_path / "folder")
    server.link(source / "name", tmp_path / "file")
    assert (tmp_path / "folder" / "name").read_text() == (tmp_path / "file").read_text() == "text"


@pytest.fixture
def beside_a_proxy(monkeypatch, tmp_path):
    """A client of a small server with ComfyUI's interface, where the environment names a proxy that nobody runs."""
    from aiohttp import web

    async def stats(_request):
        return web.json_response({"system": "up"})

    async def events(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("hello " + request.query["clientId"])
        return socket

    async def serve(ready: threading.Event, port: int) -> None:
        app = web.Application()
        app.add_routes([web.get("/system_stats", stats), web.get("/ws", events)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        await asyncio.to_thread(over.wait)
        await runner.cleanup()

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = server.ComfyServer(tmp_path, Path(sys.executable), tmp_path, {})
    ready, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(ready, client.port)))
    thread.start()
    assert ready.wait(30)
    yield client
    over.set()
    thread.join()


def test_own_server_is_never_asked_through_a_proxy(beside_a_proxy):
    assert beside_a_proxy.get("/system_stats") == {"system": "up"}
    with beside_a_proxy.listening() as events:
        assert events.recv() == f"hello {beside_a_proxy.client_id}"


def test_refusals_become_one_sentence():
    errors = [{"message": "Value not in list", "details": "ckpt_name: 'x' not in []"}]
    answer = {"error": {"message": "m"}, "node_errors": {"1": {"class_type": "Loader", "errors": errors}}}
    told = client.refusal(json.dumps(answer), ValueError())
    assert told == "Loader: Value not in list: ckpt_name: 'x' not in []"
    no_outputs = json.dumps({"error": {"message": "No outputs", "details": ""}})
    assert client.refusal(no_outputs, ValueError()) == "No outputs"
    assert client.refusal("<html>", ValueError("502")) == "502"
