"""The API reference: what is public is documented, and the command in docs/design.md makes a readable page of it."""

import doctest
import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
from readme import PAGES, ROOT

import cyclic_optim
from cyclic_optim.policies import POLICIES

PUBLIC = {name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__}


def methods(cls):
    """The public methods and properties that a class of this package has from this package, by name."""
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "cyclic_optim"]
    return {
        name: getattr(cls, name)
        for base in ours
        for name, value in vars(base).items()
        if not name.startswith("_") and isinstance(value, (property, classmethod, staticmethod, type(lambda: 0)))
    }


def own_methods(cls):
    """Those that the class itself defines: torch puts a wrapper of an inherited ``step`` into it."""
    return {name for name in methods(cls).keys() & vars(cls).keys() if not getattr(vars(cls)[name], "hooked", False)}


def explained(documented):
    """Each argument's text in the docstring, and in those of the names that it refers to, as on the command line."""
    docstring, texts = inspect.getdoc(documented), {}
    for name in re.findall(r":class:`(\w+)`", documented.__doc__):
        if name in POLICIES and PUBLIC[name] is not documented:
            texts |= explained(PUBLIC[name])
    for section in re.findall(r"^(?:Args|Attributes):\n((?: .*\n?|\n)+)", docstring, re.MULTILINE):
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), text)
    return texts


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_and_method_has_a_docstring(name):
    """So does each public method and property of a class, be it that of the method it overrides."""
    public = PUBLIC[name]
    assert public.__doc__
    if inspect.isclass(public):
        assert not [method for method, value in methods(public).items() if not inspect.getdoc(value)]


#: Its fields have docstrings of their own, which Python drops and the page shows.
BY_FIELD = {"Values"}
#: What is subclassed or caught, and not called.
NOT_CALLED = {"Policy", "Scheduled", "NoSuggestionError", "TrainStep"}
CALLED = [name for name in PUBLIC if name not in BY_FIELD | NOT_CALLED]


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_explained(name):
    """What a public class or function takes, its docstring explains, or that of the policy it refers to."""
    assert set(inspect.signature(PUBLIC[name]).parameters) <= explained(PUBLIC[name]).keys()


@pytest.mark.parametrize("policy", POLICIES.values())
def test_every_policy_states_formula_source_and_units(policy):
    """Its docstring has what it computes, who came up with it, and of what its whole numbers are counts."""
    docstring, texts = inspect.getdoc(policy), explained(policy)
    assert re.search(r"(lr_factor|at\(step\)) += ", docstring)
    assert re.search(r"^Source: ", docstring, re.MULTILINE)
    for field in fields(policy):
        if "rule" in field.metadata and field.metadata["rule"].kind in (int, tuple):
            assert re.search(r"optimizer steps|^reports", texts[field.name]), field.name


def documented():
    """Every public name, and every method that a public class defines, with what has its docstring."""
    for name, public in PUBLIC.items():
        yield name, public
        if inspect.isclass(public):
            yield from ((f"{name}.{key}", getattr(public, key)) for key in sorted(own_methods(public)))


EXAMPLES = [
    test
    for name, public in documented()
    if (test := doctest.DocTestParser().get_doctest(inspect.getdoc(public) or "", {}, name, None, None)).examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_shows_what_it_prints(example):
    """The ``>>>`` lines of a public docstring run by themselves, and print what the docstring says."""
    report = []
    assert len(EXAMPLES) > 5
    assert doctest.DocTestRunner(verbose=False).run(example, out=report.append).failed == 0, "".join(report)


# --- the page


class Page(HTMLParser):
    """What a reader of the reference sees."""

    VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})

    def __init__(self, html):
        super().__init__()
        self.ids, self.links = [], set()
        self.docstrings, self.prose, self.code = {}, [], []
        self.headings, self.emphasized = set(), set()
        self._open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("section", "div", "dd") and "id" in attributes:
            self.ids.append(attributes["id"])
        if attributes.get("href", "").startswith("#"):
            self.links.add(attributes["href"][1:])
        if tag not in self.VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag):
        while tag not in self.VOID and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not any("docstring" in attributes.get("class", "").split() for _, attributes in self._open):
            return
        tags = {tag for tag, _ in self._open}
        of = [attributes["id"] for _, attributes in self._open if "id" in attributes][-1:]
        if of:
            self.docstrings[of[0]] = self.docstrings.get(of[0], "") + data
        if tags & {"h1", "h2", "h3", "h4", "h5", "h6"}:
            self.headings.add(data)
        if tags & {"em", "i"}:
            self.emphasized.add(data)
        if "pre" not in tags:
            (self.code if "code" in tags else self.prose).append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    (command,) = re.findall(r"pdoc (--.* -o build/api cyclic_optim)$", PAGES["docs/design.md"], re.MULTILINE)
    folder = tmp_path_factory.mktemp("api")
    places = {"build/api": str(folder), "docs": str(ROOT / "docs")}
    arguments = [places.get(word, word) for word in shlex.split(command)]
    # The package under test, whichever is installed.
    environment = {**os.environ, "PYTHONPATH": str(Path(cyclic_optim.__file__).parents[1])}
    command = [sys.executable, "-m", "pdoc", *arguments]
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return Page((folder / "cyclic_optim.html").read_text(encoding="utf-8"))


def from_public_classes(cls):
    """The methods that a class has from itself or another public class."""
    homes = {name: next(base for base in cls.__mro__ if name in vars(base)) for name in methods(cls)}
    return {name for name, home in homes.items() if home in PUBLIC.values()}


def test_the_page_has_every_public_name_and_nothing_private(page):
    """All names of ``__all__`` in their order, each with its methods, inherited ones too, and a docstring for each."""
    assert [name for name in page.ids if "." not in name] == cyclic_optim.__all__
    for name, public in PUBLIC.items():
        assert page.docstrings[name].strip()
        shown = {member.partition(".")[2] for member in page.ids if member.startswith(f"{name}.")} - {"__init__"}
        assert not [member for member in shown if member.startswith("_")]
        if inspect.isclass(public):
            assert from_public_classes(public) <= shown
            assert all(page.docstrings[f"{name}.{member}"].strip() for member in own_methods(public))
            assert shown <= methods(public).keys() | inspect.get_annotations(public).keys()
    assert all("Alias" not in page.docstrings[f"Values.{field}"] for field in cyclic_optim.Values._fields)


def test_no_markup_is_left_in_what_is_read(page):
    """Roles, literals, code blocks and sections of the docstrings are rendered, and nothing else is taken for them."""
    assert not re.findall(r".*(?:`|::|:\w+:|\*\*|==|--|\$\$|\\|^\.\.).*", "".join(page.prose), re.MULTILINE)
    assert not [code for code in page.code if re.match(r"[~.`:]", code)]
    assert page.headings == {"Arguments:", "Attributes:", "Example:", "Raises:", "Returns:"}
    assert not page.emphasized


def test_links_within_the_page_lead_somewhere(page):
    """What is linked is on the page."""
    assert set(cyclic_optim.__all__) <= page.links
    assert page.links <= set(page.ids)
