"""A client of a ComfyUI server, ours or any other, over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The server is on this machine or near it: a proxy that the environment names is no way to it."""


class PromptError(Exception):
    """The server refused or broke off a prompt. The message is one readable sentence."""


class Client:
    """What a server offers over HTTP. url: `http://host:port`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def request(self, path: str, body: object = None) -> bytes:
        """GET, or POST of `body` as JSON. OSError when there is no answer, PromptError when the answer is a refusal."""
        data = None if body is None else json.dumps(body).encode()
        return self._opened(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}))

    def _opened(self, request: urllib.request.Request) -> bytes:
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(refusal(error.read().decode(errors="replace"), error)) from None

    def get(self, path: str) -> dict:
        return json.loads(self.request(path))

    def fetch(self, image: dict) -> bytes:
        """The file behind one entry of a node's `images`."""
        return self.request("/view?" + urllib.parse.urlencode(image))

    def upload(self, name: str, content: bytes, subfolder: str) -> str:
        """Put a picture into the server's input folder; the name for LoadImage."""
        edge = uuid.uuid4().hex
        fields = {"overwrite": "true", "subfolder": subfolder}
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
        file = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body = "".join(parts).encode() + f"{file}Content-Type: image/png\r\n\r\n".encode() + content
        body += f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        told = json.loads(self._opened(urllib.request.Request(f"{self.url}/upload/image", body, kind)))
        return f"{told['subfolder']}/{told['name']}" if told.get("subfolder") else told["name"]

    def queue(self, prompt: dict) -> tuple[str, str]:
        """Queue a prompt in API format: its id, and a sentence where a node does not validate, which ComfyUI leaves out
        while it runs the rest."""
        answer = json.loads(self.request("/prompt", {"prompt": prompt, "client_id": self.client_id}))
        return answer["prompt_id"], node_error(answer)

    def history(self, prompt_id: str) -> dict:
        """What is kept of a prompt that has ended. It is written shortly after the event that says so."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            entries = self.get(f"/history/{prompt_id}")
            if prompt_id in entries:
                return entries[prompt_id]
            time.sleep(0.05)
        raise PromptError("ComfyUI finished the prompt but keeps no record of it.")


def sentence(node: str, message: str) -> str:
    return f"{node}: {' '.join(message.split())}"


def refusal(text: str, error: Exception) -> str:
    """What /prompt answers to a prompt that does not validate, as one sentence."""
    try:
        answer = json.loads(text)
    except ValueError:
        return str(error)
    problem = answer.get("error", text)
    told = problem if isinstance(problem, str) else f"{problem.get('message', '')} {problem.get('details', '')}".strip()
    return node_error(answer) or told


def node_error(answer: dict) -> str:
    """The first node that did not validate, as one sentence; empty if all did."""
    for node in (answer.get("node_errors") or {}).values():
        for problem in node.get("errors", []):
            details = problem.get("details") or ""
            return sentence(node.get("class_type", ""), f"{problem.get('message', '')}: {details}".strip(": "))
    return ""
