"""What servers do is bounded in time and memory, and ends in one reason of the closed list."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from multidict import CIMultiDict
from omniportrait.training.dataset import reasons
from omniportrait.training.dataset.fetch import Fetcher, Room
from omniportrait.training.dataset.optout import OptOut, refusal
from omniportrait.training.dataset.recipe import Fetch

MEBIBYTE = 1 << 20


def fetched(web, paths: list[str], opt_out: OptOut | None = None, **settings) -> list[tuple[str, int]]:
    """Reason and size of each, all asked for at once."""

    async def everything():
        limits = Fetch(private=(web.place,), **({"seconds": 1.0, "robots": False} | settings))
        async with Fetcher(limits, opt_out or OptOut()) as fetcher:

            async def one(path: str) -> tuple[str, int]:
                async with fetcher.get(f"{web.home}/{path}") as answer:
                    return answer.reason, len(answer.content)

            found = await asyncio.gather(*map(one, paths))
            assert fetcher.room.left == limits.budget  # all that was held is given back
            return found

    return asyncio.run(everything())


@pytest.mark.parametrize(
    "path, reason",
    [
        ("portrait/1", ""), ("to/good", ""), ("status/404", reasons.GONE), ("status/410", reasons.GONE),
        ("status/500", reasons.SERVER), ("status/429", reasons.BUSY), ("status/204", reasons.MALFORMED),
        ("empty", reasons.EMPTY), ("gzip", reasons.ENCODED), ("to/itself", reasons.REDIRECTS),
        ("to/file", reasons.OTHER_SCHEME), ("to/ftp", reasons.OTHER_SCHEME), ("short", reasons.CUT_SHORT),
        ("nonsense", reasons.MALFORMED), ("told", reasons.TOO_MANY_BYTES),
        ("portrait/1?X-Robots-Tag=noai", reasons.OPTED_OUT),
        ("portrait/1?TDM-Reservation=1", reasons.OPTED_OUT),
        ("portrait/1?Content-Usage=train-ai%3Dn", reasons.OPTED_OUT),
        ("portrait/1?X-Robots-Tag=otherbot:%20noai", ""),
    ],
)  # fmt: skip
def test_each_kind_of_answer_has_its_reason(web, path, reason):
    ((found, size),) = fetched(web, [path])
    assert found == reason and (size > 0) == (not reason)


def test_nobody_listens(web):
    async def nobody() -> str:
        async with Fetcher(Fetch(private=("127.0.0.1:9",), robots=False), OptOut()) as fetcher:
            async with fetcher.get("http://127.0.0.1:9/x.jpg") as answer:
                return answer.reason

    assert asyncio.run(nobody()) == reasons.NO_CONNECTION


@pytest.mark.parametrize("address", ["ftp://x/y", "file:///etc/hostname", "a word", "", "http://", "data:image/png,x"])
def test_what_is_no_web_address(web, address):
    async def one() -> str:
        async with Fetcher(Fetch(robots=False), OptOut()) as fetcher, fetcher.get(address) as answer:
            return answer.reason

    assert asyncio.run(one()) == reasons.NOT_WEB


def test_a_flood_is_cut_off_and_held_in_no_more_than_the_budget(web):
    """Six answers of 2 GB, side by side: no more than the budget of 16 MiB and what sockets buffer is in memory."""
    tracemalloc.start()
    try:
        found = fetched(web, ["flood"] * 6, seconds=60.0, most_bytes=8 * MEBIBYTE, budget=16 * MEBIBYTE, a_host=6)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [(reasons.TOO_MANY_BYTES, 0)] * 6
    assert peak < 64 * MEBIBYTE


def test_a_slow_server_is_given_up_as_a_whole(web):
    """A byte each tenth of a second would satisfy any limit on a single read."""
    assert fetched(web, ["drip", "hang", "drip"], a_host=3, seconds=0.4) == [(reasons.TOO_SLOW, 0)] * 3


def test_room_for_bytes_is_never_exceeded():
    async def crowd() -> int:
        room, held, most = Room(10), 0, 0

        async def one(size: int) -> None:
            nonlocal held, most
            await room.take(size)
            held += size
            most = max(most, held)
            await asyncio.sleep(0)
            held -= size
            await room.give(size)

        await asyncio.gather(*(one(1 + number % 10) for number in range(100)))
        assert room.left == 10
        return most

    assert 0 < asyncio.run(crowd()) <= 10


def test_robots_are_asked_once_and_obeyed(web):
    found = fetched(web, ["forbidden/a.jpg", "portrait/2", "forbidden/b.jpg"], robots=True, seconds=20.0)
    assert [reason for reason, _ in found] == [reasons.ROBOTS, "", reasons.ROBOTS]
    assert not any(path.startswith("/forbidden") for path in web.hits)


def test_lists_of_people_who_opted_out(web):
    listed = OptOut(["# a comment", "", f"{web.home}/portrait/3", "Example.ORG", "sha256:" + "ab" * 32])
    assert fetched(web, ["portrait/3", "portrait/4"], listed)[0] == (reasons.OPTED_OUT, 0)
    assert listed.holds("https://www.example.org/x.jpg") and listed.holds("http://example.org:8080/")
    assert not listed.holds("https://example.org.net/") and not listed.holds("https://notexample.org/")
    assert listed.holds("http://other/", "ab" * 32) and not listed.holds("http://[broken")
    with pytest.raises(ValueError, match="two words"):
        OptOut(["two words"])


@pytest.mark.parametrize(
    "name, value, refused",
    [
        ("X-Robots-Tag", "noindex, nofollow", True), ("X-Robots-Tag", "all", False),
        ("X-Robots-Tag", "omniportrait-dataset: noimageai", True), ("X-Robots-Tag", "googlebot: noindex", False),
        ("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("TDM-Reservation", "0", False), ("TDM-Reservation", " 1 ", True),
        ("Content-Usage", "train-ai=y", False), ("Content-Usage", "search=y, train-ai=n", True),
    ],
)  # fmt: skip
def test_headers_by_which_owners_opt_out(name, value, refused):
    assert bool(refusal(CIMultiDict({name: value}))) == refused
