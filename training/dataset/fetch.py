"""Pictures from the open web: every address judged, every amount and every wait bounded, every answer one reason."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from . import reasons
from .guard import Refused, socket_factory
from .optout import AGENT, OptOut, refusal
from .recipe import Fetch

ROBOTS_BYTES = 500_000
CHUNK = 1 << 16
LONGEST_PAUSE = 60.0
"""Seconds that a server's Retry-After may ask for."""


@dataclass(frozen=True)
class Answer:
    """content, or the reason why there is none. pause: seconds after which the server wants to be asked again."""

    content: bytes = b""
    reason: str = ""
    pause: float = 0.0


class Room:
    """Bytes of pictures that may be in memory at once; whoever wants more waits."""

    def __init__(self, size: int) -> None:
        self.left, self.changed = size, asyncio.Condition()

    async def take(self, size: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.left >= size)
            self.left -= size

    async def give(self, size: int) -> None:
        async with self.changed:
            self.left += size
            self.changed.notify_all()


class Fetcher:
    """`async with Fetcher(limits, opt_out) as fetcher`; then `fetcher.get(url)`."""

    def __init__(self, limits: Fetch, opt_out: OptOut) -> None:
        self.limits, self.opt_out = limits, opt_out

    async def __aenter__(self) -> Fetcher:
        limits = self.limits
        connector = aiohttp.TCPConnector(
            limit=limits.at_once, limit_per_host=limits.a_host, ttl_dns_cache=300,
            socket_factory=socket_factory(frozenset(limits.private)),
        )  # fmt: skip
        contact = f"; +{limits.contact}" if limits.contact else ""
        self.session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect),
            headers={
                "User-Agent": f"Mozilla/5.0 (compatible; {AGENT}{contact})", "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
        )  # fmt: skip
        self.rules: dict[str, asyncio.Task] = {}
        self.room = Room(limits.budget)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.rules.values():
            task.cancel()
        await self.session.close()

    @contextlib.asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[Answer]:
        """A picture's bytes, which count against the budget as long as the block lasts."""
        held: list[int] = []
        try:
            yield await self._answer(url, held)
        finally:
            await self.room.give(sum(held))

    async def _answer(self, url: str, held: list[int]) -> Answer:
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                return Answer(reason=reasons.NOT_WEB)
            if self.opt_out.holds(url):
                return Answer(reason=reasons.OPTED_OUT)
            if self.limits.robots and not await self._allowed(url):
                return Answer(reason=reasons.ROBOTS)
            return await self._content(url, held)
        except Exception as error:  # whatever the web and aiohttp come upon costs one row, never the unit
            return Answer(reason=reason_of(error))

    async def _content(self, url: str, held: list[int]) -> Answer:
        """The deadline is for the server: waiting for room in memory does not count."""
        limits = self.limits
        began = time.monotonic()
        request = self.session.get(url, max_redirects=limits.redirects)
        response = await asyncio.wait_for(request, limits.seconds)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(response.close)  # a rest that nobody wants is not waited for
            if reason := self._refused(response):
                return Answer(reason=reason, pause=_pause(response))
            size = limits.most_bytes if response.content_length is None else response.content_length
            waited = time.monotonic()
            await self.room.take(size)
            held.append(size)
            left = limits.seconds - (waited - began)
            content = await asyncio.wait_for(_body(response, limits.most_bytes), left)
            if content is None:
                return Answer(reason=reasons.TOO_MANY_BYTES)
            await self.room.give(size - len(content))
            held[0] = len(content)
            stack.pop_all()
            response.release()
            return Answer(content, "" if content else reasons.EMPTY)

    def _refused(self, response: aiohttp.ClientResponse) -> str:
        if response.status == 429:
            return reasons.BUSY
        if response.status != 200:
            return {4: reasons.GONE, 5: reasons.SERVER}.get(response.status // 100, reasons.MALFORMED)
        if refusal(response.headers) or self.opt_out.holds(str(response.url)):
            return reasons.OPTED_OUT
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            return reasons.ENCODED
        return reasons.TOO_MANY_BYTES if (response.content_length or 0) > self.limits.most_bytes else ""

    async def _allowed(self, url: str) -> bool:
        """As robots.txt says: all where there is none, nothing where its server fails (RFC 9309)."""
        parts = urlsplit(url)
        home = f"{parts.scheme}://{parts.netloc}"
        if home not in self.rules:
            self.rules[home] = asyncio.ensure_future(self._robots(home))
        rules = await asyncio.shield(self.rules[home])
        return rules if isinstance(rules, bool) else rules.can_fetch(url, AGENT)

    async def _robots(self, home: str) -> object:
        from protego import Protego

        try:
            return await asyncio.wait_for(self._robots_file(home, Protego), self.limits.seconds)
        except Exception:  # the picture's own request will say why
            return True

    async def _robots_file(self, home: str, parser: type) -> object:
        async with self.session.get(f"{home}/robots.txt", max_redirects=self.limits.redirects) as response:
            if response.status != 200:
                return response.status < 500
            parts = []
            async for part in response.content.iter_chunked(CHUNK):
                parts.append(part)
                if sum(map(len, parts)) >= ROBOTS_BYTES:
                    response.close()
                    break
            return parser.parse(b"".join(parts)[:ROBOTS_BYTES].decode("utf-8", "replace"))


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """All of it, or None if it is longer."""
    content = bytearray()
    async for part in response.content.iter_chunked(CHUNK):
        content += part
        if len(content) > most:
            return None
    return bytes(content)


def _pause(response: aiohttp.ClientResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE) if value.isdigit() else 0.0


def reason_of(error: Exception) -> str:
    """The reason for what a request ended with; the order is that of the exceptions' families."""
    text = str(getattr(error, "os_error", error))
    for refused in (reasons.PRIVATE, reasons.PORT):  # also inside the sum of a name's several addresses
        if isinstance(error, (Refused, aiohttp.ClientConnectorError)) and refused in text:
            return refused
    families = (
        ((asyncio.TimeoutError, TimeoutError), reasons.TOO_SLOW),
        (aiohttp.TooManyRedirects, reasons.REDIRECTS),
        ((aiohttp.NonHttpUrlRedirectClientError, aiohttp.InvalidUrlRedirectClientError), reasons.OTHER_SCHEME),
        ((aiohttp.InvalidURL, ValueError), reasons.NOT_WEB),
        (aiohttp.ClientPayloadError, reasons.CUT_SHORT),
        ((aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError), reasons.NO_CONNECTION),
        ((aiohttp.ClientConnectionError, socket.gaierror, ConnectionError), reasons.NO_CONNECTION),
    )
    return next((reason for kinds, reason in families if isinstance(error, kinds)), reasons.MALFORMED)
