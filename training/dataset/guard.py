"""Which addresses are reached: judged at the socket, behind every name, literal, redirect and change of DNS.

aiohttp asks the socket factory for each connection, with the address that is really connected to. A resolver of our own
would not do: it is not asked for literal addresses.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection

from .reasons import PORT, PRIVATE

PORTS = (80, 443, 8080, 8443)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(OSError):
    """An OSError, for only those make aiohttp try a name's other addresses. Its text is the reason."""


def judge(address: str, port: int, private: Collection[str] = ()) -> None:
    """Refused for an address or port that is not the public web's. private: "address:port" of one's own servers."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if f"{ip}:{port}" in private:
        return
    if not all(_public(each) for each in (ip, *_inside(ip))):
        raise Refused(PRIVATE)
    if port not in PORTS:
        raise Refused(PORT)


def _public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ip.is_global and not ip.is_multicast and not (ip.is_reserved and ip not in NAT64)


def _inside(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address stands for: mapped, 6to4, Teredo, NAT64 (which Python does not unwrap)."""
    if ip.version == 4:
        return []
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def socket_factory(private: Collection[str]) -> Callable[[tuple], socket.socket]:
    """For aiohttp's connector: a socket for an address that passes."""

    def make(info: tuple) -> socket.socket:
        family, kind, protocol, _, where = info
        judge(where[0], where[1], private)
        return socket.socket(family, kind, protocol)

    return make
