"""The docstrings of which the API reference is made: all that is public has one, it explains all, its examples run."""

import doctest
import inspect
import re
from dataclasses import fields

import pytest

import cyclic_optim
from cyclic_optim import testing
from cyclic_optim.policies import POLICIES

PUBLIC = {name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__}
#: With what is public in ``cyclic_optim.testing``, which has a page in docs/ instead of this one.
ALL = PUBLIC | {name: getattr(testing, name) for name in testing.__all__}


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


@pytest.mark.parametrize("name", ALL)
def test_every_public_name_and_method_has_a_docstring(name):
    """So does each public method and property of a class, be it that of the method it overrides."""
    public = ALL[name]
    assert public.__doc__
    if inspect.isclass(public):
        assert not [method for method, value in methods(public).items() if not inspect.getdoc(value)]


#: Its fields have docstrings of their own, which Python drops and the page shows.
BY_FIELD = {"Values"}
#: What is subclassed or caught, and not called.
NOT_CALLED = {"Policy", "Scheduled", "NoSuggestionError", "TrainStep"}
CALLED = [name for name in ALL if name not in BY_FIELD | NOT_CALLED]


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_explained(name):
    """What a public class or function takes, its docstring explains, or that of the policy it refers to."""
    assert set(inspect.signature(ALL[name]).parameters) <= explained(ALL[name]).keys()


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
    for name, public in ALL.items():
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
