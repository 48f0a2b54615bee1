"""Links between the pages of the documentation, and the files that they name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("plugins/*/*.md")),
]
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"`((?:qemu_svm|tests|tools|examples|streams|plugins)/[^`\s]*)`")
_CODE = re.compile(r"^ {4}.*$|^```[^`]*^```$", re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return _CODE.sub("", page.read_text())


def links(page: Path) -> list[tuple[Path, str]]:
    """Internal links of a page: the file and the anchor, which may be empty."""
    found = []
    for target in _LINK.findall(prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), path
        if anchor:
            assert anchor in anchors(path), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_exist(page: Path) -> None:
    for name in _FILE.findall(page.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))), name


EXTERNAL = {
    "https://keepachangelog.com/en/1.1.0/",
}
"""What the pages link to elsewhere; not followed by the tests."""


def test_external_links_are_listed() -> None:
    found = {target for page in PAGES for target in _LINK.findall(prose(page)) if "://" in target}
    assert found == EXTERNAL


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file",
         ROOT / "tools" / "docs" / "mkdocs.yml", "--site-dir", tmp_path / "site"],
        capture_output=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    for page in ROOT.glob("docs/*.md"):
        html = (tmp_path / "site" / f"{page.stem}.html").read_text()
        assert "<table>" in html or "|--|" not in page.read_text()
        for target, anchor in re.findall(r'href="([a-zA-Z-]+\.html)(#[^"]*)?"', html):
            other = (tmp_path / "site" / target).read_text()
            assert not anchor[1:] or f'id="{anchor[1:]}"' in other, (page.name, target, anchor)


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md" and page.is_file():
            reached.add(page)
            todo.extend(path for path, _ in links(page))
    assert set(PAGES) <= reached
