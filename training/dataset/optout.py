"""Who does not want to be in the set: headers of the answer, and lists of addresses, hosts and checksums."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

AGENT = "omniportrait-dataset"
DENIED = {"noai", "noimageai", "noindex", "noimageindex", "none"}


def refusal(headers: Mapping[str, str]) -> str:
    """The header of an answer (a CIMultiDict) by which its owner opts out, or ""."""
    for value in headers.getall("X-Robots-Tag", ()):
        agent, colon, rest = value.partition(":")
        if colon and agent.strip().lower() not in (AGENT, "*"):
            continue  # for another robot
        if DENIED & {word.strip().lower() for word in (rest if colon else value).split(",")}:
            return "X-Robots-Tag"
    if headers.get("TDM-Reservation", "").strip() == "1":
        return "TDM-Reservation"
    if re.search(
        r"\b(train-ai|ai|train-genai)\s*=\s*n\b", ",".join(headers.getall("Content-Usage", ())), re.IGNORECASE
    ):
        return "Content-Usage"
    return ""


class OptOut:
    """Lines of lists: an address ("https://…"), a host (with all below it) or a sha256 in hexadecimal."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.addresses: set[str] = set()
        self.hosts: set[str] = set()
        self.checksums: set[str] = set()
        for line in lines:
            word = line.strip()
            if not word or word.startswith("#"):
                continue
            if "://" in word:
                self.addresses.add(word)
            elif re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", word):
                self.checksums.add(word[-64:].lower())
            elif re.fullmatch(r"[\w.-]+(:\d+)?", word):
                self.hosts.add(word.lower().strip("."))
            else:
                raise ValueError(
                    f"{word} is no address (https://…), no host and no sha256: mend that line of the list."
                )

    @classmethod
    def of_files(cls, paths: Iterable[str | Path]) -> OptOut:
        """ValueError for a file that is not there."""
        lines: list[str] = []
        for path in paths:
            try:
                lines += Path(path).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise ValueError(f"The opt-out list {path} cannot be read: {error.strerror}.") from error
        return cls(lines)

    def holds(self, url: str, sha256: str = "") -> bool:
        if url in self.addresses or sha256 in self.checksums:
            return True
        if not self.hosts:
            return False
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        names = host.split(".")
        ways = {".".join(names[start:]) for start in range(len(names))} | {f"{host}:{port}"}
        return bool(ways & self.hosts)
