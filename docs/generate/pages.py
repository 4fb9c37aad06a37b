"""The pages that lie elsewhere in the repository, links between files as links between pages, and generated parts.

A page links to files by their places in the repository, so that its links work there, too. The README is the home page,
and what the benchmarks wrote is part of the site.
"""

import ast
import posixpath
import re
from pathlib import Path

import api
import gallery
import notebook
import private_names
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Files outside of docs/, by their place in the site.
MOVED = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
#: Records: a reader of them comes from a page that quotes them.
RESULTS = {
    file.relative_to(ROOT).as_posix(): file.relative_to(ROOT).as_posix()
    for kind in ("md", "png")
    for file in sorted(ROOT.glob(f"benchmarks/results/*.{kind}"))
}
ADDED = MOVED | RESULTS
_PLACES = {source: place for place, source in ADDED.items()} | {"docs/start.py": "start.md"}

#: What is made as the site is built, by the name in ``<!-- generated: NAME -->``.
GENERATED = {
    "policies": gallery.policies,
    "private names": private_names.table,
    "recipes": gallery.recipes,
    "reference": api.reference,
}

_COMMAND = re.compile(r"`python (?P<script>\S+)[^`]*`\n")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<rest>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, source in ADDED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "start.md", content=notebook.page()))
    files.append(File.generated(config, "start.ipynb", content=notebook.notebook()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    if place in RESULTS:
        page.meta["search"] = {"exclude": True}
        markdown = with_heading(markdown)

    def linked(link: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(place)), link["path"]))
        return posixpath.relpath(place_of(source), posixpath.dirname(place) or ".") + (link["rest"] or "")

    return re.sub(r"<!-- generated: (.*) -->", lambda mark: GENERATED[mark[1]](), _LINK.sub(linked, markdown))


def with_heading(record: str) -> str:
    """A record that begins with its command, under a heading that says what was measured: the script's first line."""
    command = _COMMAND.match(record)
    if command is None:
        return record
    purpose = (ast.get_docstring(ast.parse((ROOT / command["script"]).read_text())) or "").partition("\n")[0]
    title = re.match(r"[^:?.]+\??", purpose)
    return f"# {title[0] if title else command['script']}\n\n{purpose}\n\n{record}"


def source_of(place: str) -> str:
    """The file in the repository of a page of the site."""
    return ADDED.get(place, f"docs/{place}")


def place_of(source: str) -> str:
    """The page of a file in the repository. A link to a file that is no page stays, for mkdocs to report it."""
    return _PLACES.get(source, source.removeprefix("docs/"))
