"""A hook of mkdocs: what a page links to in the repository outside `docs/` becomes part of the site.

Pages keep the relative links that GitHub resolves. README.md is the site's first page, other markdown files
become pages, sources in Python are shown as such, and anything else is copied. All keep their path in the
repository, those in `docs/` without it.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
NAV = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/NOTES.md")
_LINK = re.compile(
    r"""(?<=\]\()(?P<markdown>[^)\s]+)|(?<=\bsrc=")(?P<source>[^"]+)|(?<=\bhref=")(?P<href>[^"]+)"""
)
_CODE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
_log = logging.getLogger("mkdocs.hooks.repository")


def _in_repository(page: str) -> str:
    """The path in the repository of a page of the site."""
    if page == "index.md":
        return "README.md"
    return (
        page.removesuffix(".md")
        if page.endswith(".py.md")
        else page
        if (ROOT / page).is_file()
        else f"docs/{page}"
    )


def _in_site(path: str) -> str:
    """The path in the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    return f"{path}.md" if path.endswith(".py") else path.removeprefix("docs/")


def _target(link: str, page: str) -> str | None:
    """The file of the repository that a link of a page means; None where it leads elsewhere."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:|/", path):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def _links(markdown: str, page: str) -> set[str]:
    found = (_target(link[0], page) for link in _LINK.finditer(_CODE.sub("", markdown)))
    return {target for target in found if target is not None}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those pages link to."""
    pages = [*NAV, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(pages)
    while pages:
        page = pages.pop()
        text = (ROOT / page).read_text(encoding="utf-8") if page.endswith((".md", ".py")) else ""
        if not page.startswith("docs/"):
            content = f"# {page}\n\n````python\n{text}````\n" if page.endswith(".py") else None
            source = None if content else str(ROOT / page)
            files.append(File.generated(config, _in_site(page), content=content, abs_src_path=source))
        for target in _links(text, page) - known if page.endswith(".md") else ():
            known.add(target)
            if (ROOT / target).is_file():
                pages.append(target)
            else:
                _log.warning("%s links to %s, which is no file", page, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into those between files of the site."""
    source = _in_repository(page.file.src_uri)
    if not source.endswith(".md"):
        return markdown

    def mended(link: re.Match[str]) -> str:
        target = _target(link[0], source)
        if target is None:
            return link[0]
        path = posixpath.relpath(_in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        if link["markdown"] is None:
            path = re.sub(r"\.md$", ".html", path)
        return path + "".join(link[0].partition("#")[1:])

    return _LINK.sub(mended, markdown)
