"""No relative link in a Markdown file and no page named in the code leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omniportrait import environment

ROOT = environment.ROOT
BUILT = (".omniportrait", "output", "runs", ".git", ".pytest_cache")
PAGES = [path for path in sorted(ROOT.rglob("*.md")) if path.relative_to(ROOT).parts[0] not in BUILT]
CODE = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in BUILT]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page: its headings as GitHub spells them, and named anchors."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a name="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_a_page_is_dead(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_no_page_holds_both_sides_of_a_merge():
    assert [page for page in PAGES if re.search("^(<{7}|>{7}) ", page.read_text("utf-8"), re.MULTILINE)] == []


def test_the_code_names_pages_that_exist():
    named = {(path, name) for path in CODE for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text("utf-8"))}
    assert named
    for path, name in named:
        assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"
