"""Reading and writing the values of param groups: C and Python do the same."""

import gc
import signal
import sys
import weakref
from collections import OrderedDict, UserDict, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyclic_optim import native

COMPILED = native.compiled

needs_it = pytest.mark.skipif(COMPILED is None, reason="test_compiled.py says whether it should be there")


class StrOfTheirs(str):
    """A subclass of str, whose hash could be Python code."""

    __slots__ = ()


class DictOfTheirs(dict):
    """A dict that refuses Python's own ways of reading and writing."""

    def __getitem__(self, key):
        raise AssertionError

    def __setitem__(self, key, value):
        raise AssertionError

    get = update = __contains__ = __getitem__


NAMES = ("lr", "momentum", "max_lr")
values = st.sampled_from([0.5, 1.0, 2, None, "x", (1, 2), [], float("nan")])


@st.composite
def groups_and_columns(draw):
    """Groups, keys and columns that mostly fit to each other."""
    kinds = st.sampled_from([dict, dict, dict, DictOfTheirs, defaultdict])
    groups = []
    for _ in range(draw(st.integers(0, 4))):
        items = draw(st.dictionaries(st.sampled_from(NAMES), values | st.just(...)))
        kind = draw(kinds)
        groups.append(kind(list, items) if kind is defaultdict else kind(items))
    keys = tuple(draw(st.lists(st.sampled_from(NAMES), max_size=3)))
    columns = [[dict.get(group, key, ...) for group in groups] for key in keys]
    if keys and groups and draw(st.booleans()):
        draw(st.sampled_from(columns))[draw(st.integers(0, len(groups) - 1))] = draw(values | st.just(...))
    return spoiled(draw, groups, keys, columns) if draw(st.integers(0, 3)) == 0 else (groups, keys, tuple(columns))


def spoiled(draw, groups, keys, columns):
    """The same with one thing wrong."""
    wrong = draw(
        st.sampled_from(["group", "groups", "keys", "key", "subclass", "columns", "column", "n", "short", "long"])
    )
    if wrong == "group":
        groups.insert(draw(st.integers(0, len(groups))), draw(st.sampled_from([None, [], UserDict()])))
    elif wrong == "short" and columns:
        draw(st.sampled_from(columns))[:1] = []
    elif wrong == "long" and columns:
        draw(st.sampled_from(columns)).append(...)
    elif wrong == "column" and columns:
        columns[-1] = tuple(columns[-1])
    elif wrong == "n":
        columns.append([])
    keys = {"keys": list(keys), "key": (*keys[1:], b"lr"), "subclass": (*keys[1:], StrOfTheirs("lr"))}.get(wrong, keys)
    return tuple(groups) if wrong == "groups" else groups, keys, columns if wrong == "columns" else tuple(columns)


def outcome(function, *args):
    """What a call returns or raises."""
    try:
        return function(*args)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def by_both(function):
    """What a function returns with the compiled part and without."""
    ends = []
    for compiled in (COMPILED, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "compiled", compiled)
            ends.append(function())
    return ends


def copied(groups):
    """The groups in new containers; the values are the same objects."""
    if not isinstance(groups, list):
        return groups
    return [
        type(g)(list, g) if isinstance(g, defaultdict) else type(g)(g) if isinstance(g, dict) else g for g in groups
    ]


def contents(groups):
    """Identities of everything that is in the groups."""
    return [{key: id(value) for key, value in dict.items(g)} if isinstance(g, dict) else g for g in groups]


@needs_it
@given(groups_and_columns())
def test_holds_is_the_same_in_c_and_python(drawn):
    """Both give the same answer or the same error."""
    compiled, python = by_both(lambda: outcome(native.holds, *drawn))
    assert compiled == python


@given(groups_and_columns())
@pytest.mark.usefixtures("part")
def test_holds_compares_identities(drawn):
    """For arguments that fit to each other, the answer is that of a plain loop."""
    groups, keys, columns = drawn
    held = outcome(native.holds, *drawn)
    if not isinstance(held, bool):
        return
    pairs = [(i, k) for i in range(len(groups)) for k in range(len(keys))]
    fits = (
        isinstance(groups, list)
        and all(isinstance(group, dict) for group in groups)
        and all(not isinstance(column, list) or len(column) == len(groups) for column in columns)
    )
    assert held == (
        fits
        and all(
            not dict.__contains__(groups[i], keys[k])
            if item(columns[k], i) is ...
            else dict.get(groups[i], keys[k], pairs) is item(columns[k], i)
            for i, k in pairs
        )
    )


def item(column, i):
    """What a column has for group i: what is no list is one value for all groups."""
    return column[i] if isinstance(column, list) else column


@pytest.mark.usefixtures("part")
def test_an_equal_value_is_not_the_value():
    """Equal floats that are two objects are told apart: whoever edits a value is noticed whatever it is."""
    number = float("0.1")
    assert native.holds([{"lr": number}], ("lr",), ([number],))
    assert not native.holds([{"lr": number}], ("lr",), ([float("0.1")],))
    assert not native.holds([{"lr": ...}], ("lr",), ([...],))


@needs_it
@given(groups_and_columns())
def test_put_is_the_same_in_c_and_python(drawn):
    """Both leave the same groups, with the same order of keys, or raise the same error."""
    groups, keys, columns = drawn

    def written():
        changed = copied(groups)
        return outcome(native.put, changed, keys, columns), repr(changed)

    compiled, python = by_both(written)
    assert compiled == python


@given(groups_and_columns())
@pytest.mark.usefixtures("part")
def test_put_writes_all_or_nothing(drawn):
    """After an error the groups are as they were; else they hold each item but ``...``, and nothing else changed."""
    groups, keys, columns = drawn
    expected = contents(groups)
    result = outcome(native.put, groups, keys, columns)
    if result is None:
        for i, group in enumerate(expected):
            group.update(
                {
                    key: id(item(column, i))
                    for key, column in zip(keys, columns, strict=True)
                    if item(column, i) is not ...
                }
            )
    assert contents(groups) == expected


@pytest.mark.usefixtures("part")
def test_a_weak_reference_stands_for_what_it_refers_to():
    """A column may hold a tensor weakly: it holds while that very tensor is there."""
    tensor = torch.ones(1)
    columns = ([weakref.ref(tensor)],)
    for compiled in (native.compiled, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "compiled", compiled)
            assert native.holds([{"lr": tensor}], ("lr",), columns)
            assert not native.holds([{"lr": tensor.clone()}], ("lr",), columns)
            assert not native.holds([{}], ("lr",), columns)


def test_put_then_holds():
    """What was put is held, also in an OrderedDict whose keys were there before."""
    groups = [{"lr": 1.0, "momentum": 0.5}, OrderedDict(lr=2.0, momentum=0.5)]
    columns = ([0.25, 0.75], [..., 0.9])
    native.put(groups, ("lr", "momentum"), columns)
    assert groups == [{"lr": 0.25, "momentum": 0.5}, {"lr": 0.75, "momentum": 0.9}]
    assert native.holds(groups, ("lr",), columns[:1])


MALFORMED = {
    "need groups to be a list, got tuple": (({"lr": 1.0},), ("lr",), ([0.5],)),
    "need each group to be a dict, got NoneType": ([{"lr": 1.0}, None], ("lr",), ([0.5, 0.5],)),
    "need keys to be a tuple, got list": ([{"lr": 1.0}], ["lr"], ([0.5],)),
    "need each key to be a str, got int": ([{"lr": 1.0}], ("lr", 3), ([0.5], [0.5])),
    "need columns to be a tuple, got list": ([{"lr": 1.0}], ("lr",), [[0.5]]),
    "need as many columns as keys, got 1 and 2": ([{"lr": 1.0}], ("lr", "momentum"), ([0.5],)),
    "need one item per group in each column, got 0 and 1": ([{"lr": 1.0}], ("lr", "momentum"), ([0.5], [])),
}


@pytest.mark.parametrize(("message", "arguments"), MALFORMED.items(), ids=MALFORMED.keys())
@pytest.mark.usefixtures("part")
def test_what_is_malformed_is_refused_before_anything_is_written(message, arguments):
    """Types and lengths of all arguments are checked first."""
    before = repr(arguments)
    expected = ValueError if message[-1].isdigit() else TypeError
    assert outcome(native.put, *arguments) == (expected, message)
    assert repr(arguments) == before


@pytest.mark.usefixtures("part")
def test_a_finalizer_of_an_old_value_runs_after_the_last_write(monkeypatch):
    """It may look at the groups, empty them and raise."""
    seen, raised = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(str(unraisable.exc_value)))

    class Old:
        def __del__(self):
            seen.append([dict(group) for group in groups])
            groups[-1].clear()
            groups.clear()
            for column in columns:
                column.clear()
            raise ValueError("a finalizer")

    groups = [{"lr": Old(), "momentum": i} for i in range(3)]
    columns = ([0.5, 0.25, 0.125], [1.5, 2.5, 3.5])
    native.put(groups[:], ("lr", "momentum"), columns)
    first, *_ = seen
    assert first == [{"lr": 0.5, "momentum": 1.5}, {"lr": 0.25, "momentum": 2.5}, {"lr": 0.125, "momentum": 3.5}]
    assert raised


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.usefixtures("part")
def test_a_signal_handler_sees_all_of_a_put_or_nothing():
    """Whenever a signal arrives, its handler finds the first group and the last one at the same values."""
    groups = [{"lr": 0.0} for _ in range(5000)]
    pairs = []

    def handler(*args):
        pairs.append((groups[0]["lr"], groups[-1]["lr"]))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        for step in range(50):
            native.put(groups, ("lr",), ([float(step)] * len(groups),))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert [first == last for first, last in pairs] == [True] * len(pairs)


@pytest.mark.usefixtures("part")
def test_put_keeps_nothing():
    """Old values are dropped, and groups and new values are referred to from where they were put alone."""
    groups, old, new = [DictOfTheirs()], DictOfTheirs(), DictOfTheirs()
    dict.update(groups[0], lr=old)
    references = [weakref.ref(thing) for thing in (groups[0], old, new)]
    native.put(groups, ("lr",), ([new],))
    del old
    gc.collect()
    assert [reference() is None for reference in references] == [False, True, False]
    del groups, new
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


class HashOfLr:
    """A key of a dict that is compared with "lr" by Python code."""

    def __init__(self, eq):
        self.eq = eq

    def __hash__(self):
        return hash("lr")

    def __eq__(self, other):
        return self.eq()


@pytest.mark.parametrize("function", [native.holds, native.put])
@pytest.mark.usefixtures("part")
def test_a_comparison_of_keys_that_raises_changes_nothing(function):
    """An error from a strange key of a group reaches the caller, with nothing written."""

    def eq():
        raise ArithmeticError

    groups = [{"momentum": 0.5}, {HashOfLr(eq): 1}]
    with pytest.raises(ArithmeticError):
        function(groups, ("momentum", "lr"), ([0.5, ...], [..., 0.25]))
    assert groups[0] == {"momentum": 0.5}
    assert len(groups[1]) == 1


@needs_it
@pytest.mark.parametrize(("function", "item"), [("holds", ...), ("put", 0.25)])
def test_a_comparison_of_keys_may_empty_everything(function, item):
    """What is being read is owned, and lengths are read anew."""

    def eq():
        groups.clear()
        for column in columns:
            column.clear()
        return False

    groups = [{HashOfLr(eq): [1], "momentum": [0.5]} for _ in range(3)]
    columns = ([item] * 3, [group["momentum"] for group in groups])
    getattr(COMPILED, function)(groups, ("lr", "momentum"), columns)
    assert groups == []


@needs_it
@given(
    st.lists(st.floats() | st.sampled_from([1, True, None]), max_size=5) | st.sampled_from([(0.5,), 0.5]),
    st.floats() | st.sampled_from([2, None, torch.tensor(0.5)]),
)
def test_scaled_is_the_same_in_c_and_python(numbers, factor):
    """Both give the same bits or the same error."""
    compiled, python = by_both(lambda: repr(outcome(native.scaled, numbers, factor)))
    assert compiled == python


@pytest.mark.usefixtures("part")
@given(st.lists(st.floats(allow_nan=False)), st.floats(allow_nan=False))
def test_scaled_multiplies_each(numbers, factor):
    """The products are those of Python's floats; the list is a new one."""
    assert repr(native.scaled(numbers, factor)) == repr([number * factor for number in numbers])
    assert native.scaled(numbers, factor) is not numbers
