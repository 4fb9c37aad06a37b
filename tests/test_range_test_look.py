"""What a range test shows while it runs and afterwards: a bar, a text and a plot."""

import io
import math
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import pytest
import torch
import tqdm.auto
from helpers import FALLING, made

mpl.use("Agg")

from matplotlib import pyplot

from cyclic_optim import CyclicSGD, LRRangeTest, lr_range_test
from cyclic_optim.range_test.progress import Progress
from cyclic_optim.range_test.watch import Average

LOSSES = [3.0, 2.5, 2.75, 1.0, 0.125, 40.0]
FRAME = re.compile(r"lr range test: +\d+%\|.*\| (\d+)/6, \S+ left, lr (\S+), smoothed loss (\S+)\s*")


class Step:
    """A train_step with given losses; one that is an exception is raised."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self):
        loss = next(self.losses)
        if isinstance(loss, BaseException):
            raise loss
        return loss


def run(losses=LOSSES, **options):
    model = torch.nn.Linear(1, 1)
    options = {"num_steps": len(losses), "smoothing": 0.5} | options
    return lr_range_test(model, CyclicSGD(model.parameters(), lr=0.1), Step(losses), **options)


@pytest.fixture
def every_step(monkeypatch):
    """The bar is drawn after each step, also where steps take less than a tenth of a second."""

    class Bar(tqdm.auto.tqdm):
        def __init__(self, **options):
            super().__init__(**options, mininterval=0)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)


def frames(text):
    """What the bar showed, one after the other: tqdm begins each with a carriage return."""
    return [frame for frame in text.split("\r") if frame.strip()]


def visible(text):
    """What a terminal shows after this text, of one line."""
    line = []
    for part in text.split("\r"):
        line[: len(part)] = part
    return "".join(line).strip()


def lock_is_free():
    """Whether another thread can draw a bar: tqdm has one lock for all."""
    drawn = []

    def draw():
        with tqdm.auto.tqdm.get_lock():
            drawn.append(True)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    thread.join(timeout=60)
    return bool(drawn)


# --- while it runs


@pytest.mark.usefixtures("every_step")
def test_each_step_is_shown_with_its_rate_and_the_smoothed_loss(capsys):
    """The bar has the rate of the step just made, and the running average that the test watches."""
    found = run(divergence_factor=math.inf)
    average = Average(0.5)
    expected = [
        (str(count), f"{lr:.1e}", f"{average.add(loss):.3g}")
        for count, (lr, loss) in enumerate(zip(found.lrs, LOSSES, strict=True), start=1)
    ]
    _, *shown = frames(capsys.readouterr().err)  # the first is drawn before the first step
    assert [FRAME.fullmatch(frame).groups() for frame in shown] == expected


def received_until_closed(file):
    parts = []
    try:
        while part := os.read(file, 2**12):
            parts.append(part)
    except OSError:  # how Linux says that the other end was closed
        pass
    return b"".join(parts)


@pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals")
@pytest.mark.usefixtures("every_step")
def test_a_terminal_of_80_columns_shows_rate_and_loss(monkeypatch):
    """In a real terminal of the usual width nothing is cut off, and nothing is left behind."""
    import fcntl
    import struct
    import termios

    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with ThreadPoolExecutor(1) as reader:
        received = reader.submit(received_until_closed, ours)
        with open(its, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            run(divergence_factor=math.inf)
        text = received.result().decode()
    os.close(ours)
    shown = frames(text)
    assert all(len(frame) <= 80 for frame in shown)
    assert all(FRAME.fullmatch(frame) for frame in shown[1:])
    assert len(shown) == 7
    assert visible(text) == ""


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("last", [1.0, math.nan, RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_the_bar_goes_away(capsys, last):
    """At the end, where the test stops early, after an exception and after Ctrl-C, the terminal is as before."""
    losses = [1.0, 1.0, last, 1.0]
    if isinstance(last, BaseException):
        with pytest.raises(type(last)):
            run(losses)
    else:
        run(losses)
    shown = capsys.readouterr().err
    assert len(frames(shown)) >= 3
    assert visible(shown) == ""
    assert not [bar for bar in tqdm.auto.tqdm._instances if not bar.disable]


class Failing(io.StringIO):
    """A stream whose reader goes away after some writes."""

    def __init__(self, writes):
        super().__init__()
        self.left = writes

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    "stream",
    [*(lambda writes=writes: Failing(writes) for writes in (0, 1, 3, 6)), closed, lambda: None],
    ids=["no write", "1 write", "3 writes", "6 writes", "closed", "none"],
)
def test_a_stream_that_fails_does_not_spoil_the_result(monkeypatch, stream):
    """The result is that of a test without a bar; and tqdm's lock is free for the bars of other threads."""
    expected = run(progress=False)
    monkeypatch.setattr(sys, "stderr", stream())
    assert run() == expected
    assert lock_is_free()


@pytest.mark.parametrize("method", ["__init__", "set_postfix_str", "update", "close", "display"])
def test_a_bar_that_fails_does_not_spoil_the_result(monkeypatch, method):
    """Whatever the bar cannot do, for example because a notebook's page was closed: the test goes on without it."""
    calls = []

    def fail(self, *args, **options):
        calls.append(self)
        raise RuntimeError("no kernel")

    class Bar(tqdm.auto.tqdm):
        def __del__(self):  # tqdm's closes the bar, and Python reports what that raises
            pass

    setattr(Bar, method, fail)
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    assert run() == run(progress=False)
    assert calls


def test_ctrl_c_reaches_the_test_while_the_bar_is_drawn(monkeypatch):
    """Errors of the bar are dropped, a Ctrl-C in it is not; the lock of tqdm is free then."""

    class Bar(tqdm.auto.tqdm):
        def display(self, *args, **options):
            if self.n == 1 and not self.disable:
                raise KeyboardInterrupt
            return super().display(*args, **options)

        def __init__(self, **options):
            super().__init__(**options, mininterval=0)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert lock_is_free()


def test_without_a_bar_the_steps_are_the_same(capsys):
    """With show=False nothing is written, and the steps are counted all the same."""
    with Progress(3, show=False) as progress:
        steps = []
        for step in progress:
            progress.show(0.1, 2.0)
            steps.append(step)
    assert steps == [0, 1, 2]
    assert capsys.readouterr().err == ""


def script(code, *options):
    """Run code in a new process; returns what it wrote to stdout and to stderr."""
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


TEST_IN_A_SCRIPT = (
    "import torch; from cyclic_optim import CyclicSGD, lr_range_test\n"
    "model = torch.nn.Linear(1, 1)\n"
    "found = lr_range_test(model, CyclicSGD(model.parameters(), lr=0.1), lambda: 1.0, num_steps=3)\n"
    "print(len(found.losses))\n"
)


@pytest.mark.parametrize("missing", ["tqdm", "tqdm.auto"])
def test_without_tqdm_there_is_no_bar_and_no_error(missing):
    """tqdm is an optional extra."""
    assert script(f"import sys; sys.modules[{missing!r}] = None\n" + TEST_IN_A_SCRIPT) == ("3\n", "")


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["warnings shown", "warnings as errors"])
def test_a_notebook_without_ipywidgets_gets_a_line_and_no_warning(options):
    """tqdm's advice to install ipywidgets is kept from the user, who did not ask for a widget."""
    notebook = (
        "import sys, types; sys.modules['ipywidgets'] = None\n"
        "sys.modules['ipykernel.zmqshell'] = types.ModuleType('zmqshell')\n"
        "sys.modules['IPython'] = types.ModuleType('IPython'); sys.modules['IPython'].get_ipython = object\n"
    )
    printed, shown = script(notebook + TEST_IN_A_SCRIPT, *options)
    assert printed == "3\n"
    assert "lr range test" in shown
    assert "Warning" not in shown.replace("ResourceWarning", "")  # torch 2.6 leaves a temporary folder to Python's exit


# --- afterwards


def test_the_text_of_a_result_stays():
    """print and a terminal show the text, with the two rates."""
    found = made(FALLING)
    assert repr(found) == str(found)
    assert repr(found).startswith("LRRangeTest(base_lr=")


def test_a_maximized_loss_is_drawn_upside_down():
    """Of a maximized loss the axis shows the climb, not the fall after it, and the mark is at the highest loss."""
    losses = [3.0 - 2.0 * min(i, 25) / 25 + (0.4 * max(0, i - 25)) ** 3 for i in range(40)]
    lrs = [10 ** (i / 10 - 4) for i in range(40)]
    usual = LRRangeTest(lrs, losses, "exponential", "the loss diverged", 0.5)
    other = LRRangeTest(lrs, [-loss for loss in losses], "exponential", "the loss diverged", 0.5, maximize=True)
    (bottom, top), (low, high) = usual.plot().get_ylim(), other.plot().get_ylim()
    assert (low, high) == pytest.approx((-top, -bottom))
    for found, place, name in ((usual, (lrs[25], 1.0), "lowest"), (other, (lrs[25], -1.0), "highest")):
        (mark,) = (one for one in found.plot().collections if "single loss" in one.get_label())
        assert mark.get_offsets()[0].tolist() == pytest.approx(place)
        assert mark.get_label() == f"{name} single loss: lr {lrs[25]:.2g}"
    pyplot.close("all")
