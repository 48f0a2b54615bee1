"""Pages that are elsewhere in the checkout, and links that lead out of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "plugins/svmtrace/README.md": "svmtrace.md",
    "examples": "examples.md",
}
"""Paths in the checkout that are pages of the site, and their names there."""

STYLE = """\
.md-typeset table:not([class]) { display: table; }
.md-typeset pre > code { white-space: pre; overflow-x: auto; }
.md-typeset code { word-break: break-word; }
.md-typeset__table { width: 100%; }
@media (max-width: 45em) {
  .md-typeset table:not([class]) { display: block; overflow-x: auto; font-size: .58rem; }
}
"""
_LINK = re.compile(r"(\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, and the style sheet."""
    for path, name in PAGES.items():
        text = _examples() if path == "examples" else (ROOT / path).read_text()
        folder = Path(path).parent
        files.append(File.generated(config, name, content=_moved(text, ROOT / folder)))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of a page of ``docs`` to the pages of the site."""
    if page.file.generated_by:
        return markdown
    return _moved(markdown, ROOT / "docs")


def _moved(text: str, folder: Path) -> str:
    # Links as seen from a folder of the checkout, as they are in the site: to pages by their
    # names there; to other files of the checkout as text, since the site does not have them.
    def replace(match: re.Match[str]) -> str:
        start, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = (folder / target).resolve()
        if path.parent == ROOT / "docs":
            return f"{start}{path.name}{anchor})"
        name = PAGES.get(str(path.relative_to(ROOT)))
        if name is not None:
            return f"{start}{name}{anchor})"
        return f"{start.removeprefix('[').removesuffix('](')} (`{path.relative_to(ROOT)}`)"

    return _LINK.sub(replace, text)


def _examples() -> str:
    parts = ["# Examples", "Programs of the source distribution, run by its tests."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts += [f"## `{path.name}`", f"```python\n{path.read_text()}```"]
    return "\n\n".join(parts) + "\n"
