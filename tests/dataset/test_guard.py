"""Private addresses are never reached, in whatever form they come."""

from __future__ import annotations

import asyncio
import socket

import pytest
from omniportrait.training.dataset import reasons
from omniportrait.training.dataset.fetch import Fetcher
from omniportrait.training.dataset.guard import Refused, judge
from omniportrait.training.dataset.optout import OptOut
from omniportrait.training.dataset.recipe import Fetch

PRIVATE = (
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1",
    "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::", "2002:c0a8:101::", "2001:0:7f00:1:0:0:80ff:fffe",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address):
    with pytest.raises(Refused, match=reasons.PRIVATE):
        judge(address, 443)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_pass_on_the_ports_of_the_web_alone(address):
    for port in (80, 443, 8080, 8443):
        judge(address, port)
    for port in (22, 25, 6379, 9200, 11211):
        with pytest.raises(Refused, match="port"):
            judge(address, port)


def test_own_servers_are_named_with_their_port():
    judge("127.0.0.1", 8181, {"127.0.0.1:8181"})
    with pytest.raises(Refused):
        judge("127.0.0.1", 8182, {"127.0.0.1:8181"})
    with pytest.raises(Refused):
        judge("127.0.0.2", 8181, {"127.0.0.1:8181"})


def answers(addresses: list[str], **settings) -> list[str]:
    """Reasons, or "" for a picture, of fetching each address."""

    async def everything() -> list[str]:
        found = []
        async with Fetcher(Fetch(robots=False, seconds=5, **settings), OptOut()) as fetcher:
            for address in addresses:
                async with fetcher.get(address) as answer:
                    found.append(answer.reason)
        return found

    return asyncio.run(everything())


def test_every_form_of_a_private_address_is_stopped_at_the_socket(web):
    port = web.secret
    forms = [
        f"http://127.0.0.1:{port}/", f"http://localhost:{port}/", f"http://[::1]:{port}/", f"http://0:{port}/",
        f"http://[::ffff:127.0.0.1]:{port}/", f"http://user:word@127.0.0.1:{port}/", f"http://127.1:{port}/",
        f"http://2130706433:{port}/", f"http://0x7f000001:{port}/", f"http://0177.0.0.1:{port}/",
        *(f"{web.home}/to/{name}" for name in ("private", "six", "name", "mapped")),
    ]  # fmt: skip
    found = answers(forms, private=(web.place,))
    assert set(found) <= {reasons.PRIVATE, reasons.NOT_WEB, reasons.NO_CONNECTION}
    assert found[:3] == [reasons.PRIVATE] * 3 and found[-4:] == [reasons.PRIVATE] * 4
    assert web.reached == []


def resolving(monkeypatch, *rounds: list[str]) -> None:
    """Names resolve to these addresses, round after round; the last one stays."""
    left = list(rounds)

    def getaddrinfo(host, port, *_, **__):
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_that_changes_its_address_is_judged_at_each_connection(web, monkeypatch):
    """DNS rebinding: allowed at the first request, another address of this machine at the second."""
    resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    address = f"http://pictures.example:{web.port}/portrait/1"

    async def twice() -> list[str]:
        found = []
        for _ in range(2):  # a Fetcher each, since one keeps what a name resolved to for minutes
            async with Fetcher(Fetch(robots=False, private=(web.place,)), OptOut()) as fetcher:
                async with fetcher.get(address) as answer:
                    found.append(answer.reason)
        return found

    assert asyncio.run(twice()) == ["", reasons.PRIVATE]


def test_several_private_addresses_of_one_name_cost_one_row(monkeypatch):
    resolving(monkeypatch, ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
    assert answers(["http://pictures.example/x.jpg"]) == [reasons.PRIVATE]


def test_ports_are_judged_too(monkeypatch):
    resolving(monkeypatch, ["8.8.8.8"])
    assert answers(["http://pictures.example:6379/"]) == [reasons.PORT]
