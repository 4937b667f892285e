"""A web on loopback: good portraits and every kind of bad answer, and a second server that nobody may reach.

`python run.py make web --out FOLDER` serves it for a while and writes metadata and a recipe for `run.py dataset` there.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import json
import struct
import threading
import time
import zlib
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image

KINDS = (
    "html", "empty", "bomb", "moving", "small", "strip", "nobody", "two", "far", "turned", "grey", "cmyk", "again",
    "copy", "like", "to/good", "to/itself", "to/private", "to/six", "to/name", "to/mapped", "to/file", "to/ftp",
    "status/404", "status/500", "status/429", "status/204", "once", "gzip", "flood", "drip", "hang", "short", "told",
    "nonsense", "forbidden/x.jpg", "portrait/9?X-Robots-Tag=noai",
)  # fmt: skip
"""Every kind of answer."""


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make web", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for meta.jsonl and recipe.yaml")
    parser.add_argument("--portraits", type=int, default=40, help="good pictures, beside the bad ones (default: 40)")
    parser.add_argument("--seconds", type=float, default=600, help="how long it serves (default: 600)")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    with Web() as site:
        rows = [{"url": f"{site.home}/{kind}", "text": "a woman in orange"} for kind in KINDS]
        rows += [{"url": f"{site.home}/portrait/{n}", "text": f"a woman, number {n}"} for n in range(given.portraits)]
        (given.out / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (given.out / "recipe.yaml").write_text(f"fetch: {{private: ['{site.place}'], seconds: 10}}\nunit: 20\n")
        print(f"{len(rows)} addresses of {site.home} in {given.out}, for {given.seconds:g} seconds", flush=True)
        time.sleep(given.seconds)


def background(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colours that differ with the seed, so that no two are near copies."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@cache
def head() -> Image.Image:
    """A real face (NASA's photograph of Eileen Collins, public domain), 200 pixels square."""
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((124, 20, 324, 220))


SCENES = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "gravel.png", "grass.png")
"""Photographs without people that skimage carries."""


@cache
def photograph(name: str) -> Image.Image:
    import skimage

    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def scene(seed: int, width: int = 640, height: int = 640) -> Image.Image:
    """A part of a photograph without people: texture, in which a detector sees much that is none."""
    draw = np.random.default_rng(seed)
    whole = photograph(SCENES[seed % len(SCENES)])
    side = int(draw.integers(200, 380))
    left, top = (int(draw.integers(0, each - side + 1)) for each in whole.size)
    return whole.crop((left, top, left + side, top + side)).resize((width, height), Image.Resampling.BICUBIC)


def portrait(seed: int = 0, side: int = 640, face: int = 260, behind=background) -> Image.Image:
    picture = behind(seed, side, side)
    picture.paste(head().resize((face, face), Image.Resampling.BICUBIC), ((side - face) // 2 + seed % 7, side // 4))
    return picture


def jpeg(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


@cache
def served(kind: str, seed: int) -> bytes:
    """A portrait, a scene, or a person in a scene."""
    made = {"portrait": portrait, "scene": scene, "person": partial(portrait, behind=scene)}
    return jpeg(made[kind](seed))


def two_faces() -> Image.Image:
    picture = background(1, 1000, 640)
    for left in (60, 560):
        picture.paste(head().resize((300, 300)), (left, 150))
    return picture


def small_face() -> Image.Image:
    """A face of some 44 pixels in 520, which the first look still sees."""
    picture = background(2, 520, 520)
    picture.paste(head().resize((78, 78), Image.Resampling.BICUBIC), (200, 200))
    return picture


def bomb(side: int = 12000) -> bytes:
    """A PNG of one-bit pixels: 144 million of them in some 80 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), b"\0" + bytes((side + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def moving() -> bytes:
    file = io.BytesIO()
    frames = [background(seed, 600, 600) for seed in (3, 4)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


@cache
def bodies() -> dict[str, bytes]:
    """What is served under a name, as it is."""
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010F] = "a camera"
    turned[0x8825] = {1: "N"}
    grey = jpeg(portrait(5).convert("L"))
    cmyk = io.BytesIO()
    portrait(6).convert("CMYK").save(cmyk, "JPEG")
    return {
        "html": b"<html>this picture has gone</html>", "empty": b"", "bomb": bomb(), "moving": moving(),
        "small": jpeg(portrait(7, 300, 130)), "strip": jpeg(background(8, 2400, 600)),
        "nobody": jpeg(background(9, 640, 640)), "two": jpeg(two_faces()), "far": jpeg(small_face()),
        "turned": jpeg(portrait(10).rotate(90), exif=turned.tobytes()), "grey": grey, "cmyk": cmyk.getvalue(),
        "again": jpeg(portrait(11)), "copy": jpeg(portrait(11)) + b"<?php trailing ?>",
        "like": jpeg(portrait(11).resize((600, 600))),
    }  # fmt: skip


class Web:
    """`with Web() as site`: site.home is its address, site.hits counts requests by path, site.reached the others'."""

    def __init__(self, delay: float = 0.0) -> None:
        """delay: seconds before each picture."""
        self.delay = delay
        self.hits: Counter[str] = Counter()
        self.reached: list[str] = []

    def __enter__(self) -> Web:
        bodies()  # now, and not while somebody waits for an answer
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(120)
        self.home, self.place = f"http://127.0.0.1:{self.port}", f"127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(120)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()

    async def _start(self) -> None:
        outer, inner = web.Application(), web.Application()
        outer.router.add_get("/{kind:portrait|scene|person}/{seed}", self._portrait)
        outer.router.add_get("/robots.txt", self._robots)
        outer.router.add_get("/{kind:.*}", self._kind)
        inner.router.add_get("/{any:.*}", self._secret)
        self.runners = []
        for application, name in ((outer, "port"), (inner, "secret")):
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            setattr(self, name, runner.addresses[0][1])
            self.runners.append(runner)

    async def _stop(self) -> None:
        for runner in self.runners:
            await runner.cleanup()

    async def _secret(self, request: web.Request) -> web.Response:
        self.reached.append(request.path)
        return web.Response(body=jpeg(portrait(0)), content_type="image/jpeg")

    async def _robots(self, request: web.Request) -> web.Response:
        return web.Response(text="User-agent: *\nDisallow: /forbidden/\n")

    async def _portrait(self, request: web.Request) -> web.Response:
        self.hits[request.path] += 1
        await asyncio.sleep(self.delay)
        headers = {name: request.query[name] for name in ("X-Robots-Tag", "TDM-Reservation", "Content-Usage")
                   if name in request.query}  # fmt: skip
        content = served(request.match_info["kind"], int(request.match_info["seed"]))
        return web.Response(body=content, content_type="image/jpeg", headers=headers)

    async def _kind(self, request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        self.hits[request.path] += 1
        if kind in bodies():
            return web.Response(body=bodies()[kind], content_type="image/jpeg")
        if (target := self._targets().get(kind)) is not None:
            raise web.HTTPFound(target)
        if kind.startswith("status/"):
            return web.Response(status=int(kind[7:]))
        if kind == "once":  # fails the first time
            if self.hits[request.path] == 1:
                return web.Response(status=503)
            raise web.HTTPFound("/portrait/12")
        if kind == "gzip":
            headers = {"Content-Encoding": "gzip", "Content-Type": "image/jpeg"}
            return web.Response(body=gzip.compress(bytes(1_000_000)), headers=headers)
        if kind in ("flood", "drip", "short", "told"):
            return await getattr(self, f"_{kind}")(request)
        if kind == "hang":
            await asyncio.sleep(60)
        if kind == "nonsense":
            request.transport.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            request.transport.close()
        raise web.HTTPNotFound

    def _targets(self) -> dict[str, str]:
        """Where redirects lead to."""
        secret = f"{self.secret}/latest/meta-data/"
        return {
            "to/good": "/portrait/13", "to/itself": "/to/itself", "to/private": f"http://127.0.0.1:{secret}",
            "to/six": f"http://[::1]:{secret}", "to/name": f"http://localhost:{secret}",
            "to/mapped": f"http://[::ffff:127.0.0.1]:{secret}", "to/file": "file:///etc/hostname",
            "to/ftp": "ftp://127.0.0.1/x.jpg", "to/forbidden": "/forbidden/x.jpg",
        }  # fmt: skip

    async def _flood(self, request: web.Request) -> web.StreamResponse:
        """Two gigabytes, without saying so."""
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        await response.prepare(request)
        for _ in range(2000):
            await response.write(bytes(1 << 20))
        return response

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        """A byte each tenth of a second, for a minute."""
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        await response.prepare(request)
        for _ in range(600):
            await response.write(b"\xff")
            await asyncio.sleep(0.1)
        return response

    async def _short(self, request: web.Request) -> web.StreamResponse:
        """Less than it says."""
        content = jpeg(portrait(14))
        headers = {"Content-Type": "image/jpeg", "Content-Length": str(len(content) + 5000)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(content)
        request.transport.close()
        return response

    async def _told(self, request: web.Request) -> web.StreamResponse:
        """Says at once that it is far too large."""
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg", "Content-Length": str(3 << 30)})
        await response.prepare(request)
        await asyncio.sleep(60)
        return response
