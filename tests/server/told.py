"""What ComfyUI tells a client over its socket, and whose it is.

ComfyUI's server broadcasts its queue's status; every other event goes to the client that queued the prompt, and names
the prompt.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator

SECONDS = 120


class Client:
    """One page's side of the protocol without the page: one socket for all its prompts, which keeps all it is told."""

    def __init__(self, server, client_id: str, events) -> None:
        self.server, self.id = server, client_id
        self.messages: list[dict] = []
        self.prompts: list[str] = []
        self._events = events

    def run(self, prompt: dict) -> dict:
        """Queue a prompt and listen until it has ended well: its outputs by node id."""
        answer = json.loads(self.server.request("/prompt", {"prompt": prompt, "client_id": self.id}))
        own = answer["prompt_id"]
        self.prompts.append(own)
        self._listen(lambda told: told["type"] == "execution_success" and told["data"]["prompt_id"] == own)
        return self.server.history(own)["outputs"]

    def listen_until_idle(self) -> None:
        """To the end of everybody's prompts."""
        self._listen(is_idle)

    def _listen(self, enough) -> None:
        while True:
            message = self._events.recv()
            assert message != "", "the server closed the socket"
            if isinstance(message, str):  # previews are binary
                self.messages.append(json.loads(message))
                if enough(self.messages[-1]):
                    return


@contextlib.contextmanager
def connected(server) -> Iterator[Client]:
    client_id = uuid.uuid4().hex
    with server.listening(client_id, SECONDS) as events:
        yield Client(server, client_id, events)


def is_idle(told: dict) -> bool:
    """Whether a message says that nothing is queued or running."""
    return told["type"] == "status" and told["data"]["status"]["exec_info"]["queue_remaining"] == 0


def outputs_of(messages: list[dict], prompt_id: str) -> dict:
    """The output of each node that was told as executed for a prompt."""
    executed = [told["data"] for told in messages if told["type"] == "executed"]
    return {data["node"]: data["output"] for data in executed if data["prompt_id"] == prompt_id}


def assert_own(messages: list[dict], prompts: list[str], sampler: str, steps: int, every: bool) -> None:
    """A client was told of its own prompts only, and of each of these from its start to its end, with every step of its
    sampling node where ComfyUI did not answer that from its cache. every: newer cores leave out steps that follow too
    fast upon one another, but never the last."""
    addressed = [told for told in messages if told["type"] not in ("status", "feature_flags")]
    foreign = [told for told in addressed if told["data"].get("prompt_id") not in prompts]
    assert not foreign, foreign[:3]
    sampled = 0
    for prompt_id in prompts:
        own = [told for told in addressed if told["data"]["prompt_id"] == prompt_id]
        kinds = [told["type"] for told in own]
        assert kinds[0] == "execution_start" and kinds.count("execution_success") == 1, kinds
        assert {"executing", "progress_state", "executed"} <= set(kinds), kinds
        cached = any(sampler in told["data"]["nodes"] for told in own if told["type"] == "execution_cached")
        progress = [told["data"] for told in own if told["type"] == "progress"]
        values = [each["value"] for each in progress if each["node"] == sampler]
        assert values == sorted(set(values)) and values[-1:] == ([] if cached else [steps]), progress
        assert not every or values == ([] if cached else list(range(1, steps + 1))), progress
        sampled += not cached
    assert sampled
