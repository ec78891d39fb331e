"""mkdocs hook: the Markdown files outside docs/ to which a page links become pages of the site.

Links to other files of the repository, such as sources and JSON files, become plain text, because the site does not
contain them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository"
"""Folder of the site for the files outside docs/."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each linked Markdown file, and for those to which these link."""
    waiting = [Path(config.docs_dir, file.src_uri) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for _, _, address in LINK.findall(page.read_text(encoding="utf-8")):
            target = _target(page, address)
            if target and target.suffix == ".md" and target.is_file() and target not in seen:
                seen.add(target)
                waiting.append(target)
                files.append(File.generated(config, _place(target), content=target.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, config: MkDocsConfig) -> str:
    """Rewrites links that leave docs/."""
    place = page.file.src_uri
    source = (
        ROOT / place.removeprefix(f"{OUTSIDE}/") if place.startswith(f"{OUTSIDE}/") else Path(config.docs_dir, place)
    )

    def rewritten(match: re.Match[str]) -> str:
        image, text, address = match.groups()
        target = _target(source, address)
        if target is None:
            return match[0]
        inside = (
            target.relative_to(config.docs_dir).as_posix() if target.is_relative_to(config.docs_dir) else _place(target)
        )
        if files.get_file_from_path(inside) is None:
            return text if target.exists() and not image else match[0]  # a link to nothing is reported by mkdocs
        fragment = urlsplit(address).fragment
        link = os.path.relpath(inside, Path(place).parent)
        return f"{image}[{text}]({link}{'#' + fragment if fragment else ''})"

    return LINK.sub(rewritten, markdown)


def _target(page: Path, address: str) -> Path | None:
    """The file that a relative link names; None for other links."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return Path(os.path.normpath(page.parent / parts.path))


def _place(target: Path) -> str:
    """Path of a file outside docs/ in the site."""
    return f"{OUTSIDE}/{target.relative_to(ROOT).as_posix()}"
