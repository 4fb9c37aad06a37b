"""The documentation site: it builds without a warning, loads nothing from elsewhere, and has all that is public.

With ``SITE`` in the environment, the site that is tested is the one in that folder; otherwise it is built.
"""

import functools
import http.server
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from readme import ROOT

import cyclic_optim
import cyclic_optim.testing
from cyclic_optim.policies import POLICIES

pytestmark = pytest.mark.site

#: What turns the pages into a site, as CONTRIBUTING.md has it.
NEEDED = ("material", "mkdocstrings", "matplotlib")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    if "SITE" in os.environ:
        return ROOT / os.environ["SITE"]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing} are not installed (the docs extra)")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """The links of a page, where they may lead, and the text of its article that is not code."""

    VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"})

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.loaded, self.prose, self.headings = set(), set(), set(), [], []
        self._open = []
        self.title = re.search(r"<h1[^>]*>([^<]*)", html)[1]
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if "doc-heading" in attributes.get("class", ""):
            self.headings.append(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.add(attributes["href"])
        elif tag == "link":
            self.loaded.add(attributes["href"])
        elif "src" in attributes:
            self.loaded.add(attributes["src"])
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "article" in self._open and not {"pre", "code", "script", "style", "svg"} & {*self._open}:
            self.prose.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")}


#: What torch calls, and users do not.
TORCHS = {"profile_hook_step"}


def public_methods(cls):
    """The public methods and properties that a class documents itself, beside a ``step`` that torch has wrapped."""
    kinds = (property, classmethod, staticmethod, type(lambda: 0))
    return {
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and isinstance(value, kinds) and value.__doc__ and not hasattr(value, "hooked")
    }


def test_every_page_is_there(pages):
    """So many pages as there are files, the gallery and the reference among them."""
    assert {"index.html", "gallery.html", "api.html", "design.html"} <= pages.keys()
    assert {f"{page.stem}.html" for page in ROOT.glob("docs/*.md")} <= pages.keys()


def test_links_within_the_site_lead_somewhere(site, pages):
    """Each link goes to a page that there is and to a place in it, each picture and script is a file."""
    for name, page in pages.items():
        if name == "404.html":
            continue  # its links begin at the root of a server
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("https", "data", "javascript", "mailto"):
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (name, link)
            if parts.fragment and target.suffix == ".html":
                found = pages[target.resolve().relative_to(site.resolve()).as_posix()]
                assert unquote(parts.fragment) in found.ids, (name, link)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    """Neither a page nor a style sheet names a font, script, style or picture of another server."""
    assert {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_the_reference_has_every_public_name_and_nothing_private(pages):
    """All names of ``__all__`` in their order, with the methods that each documents; and those of the testing kit."""
    shown = [name.removeprefix("cyclic_optim.") for name in pages["api.html"].headings]
    assert [name for name in shown if "." not in name] == cyclic_optim.__all__
    assert {f"testing.{name}" for name in cyclic_optim.testing.__all__} <= {*shown}
    assert not [name for name in shown if re.search(r"(^|\.)_(?!_)", name)]
    for name in cyclic_optim.__all__:
        public = getattr(cyclic_optim, name)
        if inspect.isclass(public):
            assert {f"{name}.{method}" for method in public_methods(public) - TORCHS} <= {*shown}


def test_no_markup_is_left_in_the_reference(pages):
    """Roles, literals, code blocks and sections of the docstrings are rendered."""
    prose = "".join(pages["api.html"].prose)
    assert not re.findall(r".*(?:`|::|:\w+:|\*\*|==|--|\$\$|\\|^\.\.).*", prose, re.MULTILINE)


def test_the_gallery_has_every_policy(site, pages):
    """Each policy has a heading and a picture."""
    ids = {name.lower() for name in POLICIES}
    assert ids <= pages["gallery.html"].ids
    assert (site / "gallery.html").read_text().count("<svg viewBox") > len(POLICIES)


# -- in a browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Where a server has the site."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the docs extra)")
    paths = [path for name in BROWSERS if (path := shutil.which(name))]
    if not paths:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("scheme", "opened"), [("light", "from a server"), ("dark", "as a file")])
def test_the_search_finds_what_is_there(browser, site, address, scheme, opened):
    """A search for OneCycle finds its entry in the reference; no request leaves the machine, nothing fails."""
    address = address if opened == "from a server" else f"{site.resolve().as_uri()}/"
    page = browser.new_context(color_scheme=scheme).new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address + "index.html")
    dark = page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    assert dark == (scheme == "dark")
    page.locator("input[name=query]").press_sequentially("OneCycle")
    found = page.locator("a.md-search-result__link")
    found.first.wait_for()
    links = [link.get_attribute("href") for link in found.all()]
    assert any("api.html" in link and "cyclic_optim.OneCycle" in link for link in links), links
    assert requests
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert complaints == []


def test_no_page_is_wider_than_a_phone(browser, address, pages):
    """What is wide, tables, code and pictures, scrolls by itself."""
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    for name in pages:
        page.goto(address + name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_a_record_says_what_was_measured(pages):
    """The page of each record has a heading in words, not the name of its file."""
    titles = [page.title for name, page in pages.items() if name.startswith("benchmarks/")]
    assert titles
    assert [title for title in titles if not title[0].isupper() or " md" in title or "_" in title] == []
