"""Makes the site's pages of files that lie outside docs/ (mkdocs.yml names this hook).

Pages link to files of the repository as a reader on a code host expects: `../csrc/include/fuseo1/survey.h`. The site
gets a page for every file that is linked so: Markdown as it is, anything else as a listing. README.md is the front
page. A link to a file that does not exist is left as it is, and `mkdocs build --strict` fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_LANGUAGES = {
    ".py": "python",
    ".h": "c",
    ".cuh": "cpp",
    ".cu": "cpp",
    ".cpp": "cpp",
    ".json": "json",
    ".sh": "bash",
}
_HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"

# Pages of the site whether or not another one links to them.
_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

# The Markdown file of the repository that a page of the site is made of.
_origin: dict[str, str] = {}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add README.md and whatever pages link to outside docs/, directly or by way of another such page."""
    root = Path(config.config_file_path).parent
    _origin.clear()
    _origin.update({f.src_uri: f"docs/{f.src_uri}" for f in files.documentation_pages()})
    for name in _PAGES:
        _origin[_uri(name)] = name
        text = (root / name).read_text("utf-8")
        files.append(File.generated(config, _uri(name), content=text))
    unread = list(_origin)
    while unread:
        origin = _origin[unread.pop()]
        for target in _LINK.findall((root / origin).read_text("utf-8")):
            path = _resolve(origin, target)
            uri = _uri(path)
            if (
                path.startswith("docs/")
                or files.get_file_from_path(uri)
                or not (root / path).is_file()
            ):
                continue
            text = (root / path).read_text("utf-8")
            if path.endswith(".md"):
                _origin[uri] = path
                unread.append(uri)
            else:
                text = (
                    f"# `{path}`\n\n````{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n````\n"
                )
            files.append(File.generated(config, uri, content=_HIDDEN + text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    origin = _origin.get(page.file.src_uri)
    if origin is None:
        return markdown

    def link(match: re.Match[str]) -> str:
        uri = _uri(_resolve(origin, match[1]))
        if files.get_file_from_path(uri) is None:
            return match[1]
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(link, markdown)


def _resolve(origin: str, target: str) -> str:
    """The path in the repository that a link of the file `origin` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _uri(path: str) -> str:
    """The page of the site that shows the file `path` of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(".md") else f"files/{path}.md"
