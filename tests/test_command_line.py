"""The command line: every policy, its options made from its fields, and no traceback, whatever is typed."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import MISSING, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COMPOSITES, POLICY_STRATEGIES, carries_code

import cyclic_optim
from cyclic_optim import (
    Combined,
    Constant,
    CosineRestarts,
    ExponentialDecay,
    LinearRamp,
    OneCycle,
    Plateau,
    Scaled,
    Sequential,
    StepDecay,
    Triangular,
    Triangular2,
    Warmup,
)
from cyclic_optim.__main__ import command_name, default_steps, main
from cyclic_optim.policies import POLICIES
from cyclic_optim.policies.expression import parsed

IN_CODE_ONLY = {"LambdaPolicy"}
PREVIEWED = [name for name in POLICIES if name not in {*IN_CODE_ONLY, *COMPOSITES}]
NO_OPTION = {"scale_fn"}


def run(*arguments, **environment):
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cyclic_optim", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def options_of(policy):
    """The words that describe a policy on the command line."""
    words = [command_name(type(policy))]
    for field in fields(policy):
        value, option = getattr(policy, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            words += [f"--{option}", *map(str, value)]
        elif value is not None:
            words.append(f"--{option}={value}")
    return words


def refused(capsys, *arguments):
    """The message with which the arguments are refused."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "Traceback" not in captured.err
    return captured.err


def shown(capsys, *arguments):
    """What is printed for right arguments."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def printed(*arguments, columns=80):
    """The lines that are printed, for the tests of which hypothesis makes many."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr("builtins.print", lines.append)
        assert main(arguments) == 0
    return lines


@pytest.mark.parametrize("name", PREVIEWED)
@settings(max_examples=10)
@given(data=st.data())
def test_the_csv_is_the_policy(name, data):
    """For every policy and options, every line has the step, and rate and momentum to the last bit."""
    policy = data.draw(POLICY_STRATEGIES[name].filter(lambda policy: not carries_code(policy)))
    assert_csv_is(policy, data, *options_of(policy))


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in IN_CODE_ONLY])
@settings(max_examples=10)
@given(data=st.data())
def test_the_csv_of_an_expression_is_the_policy(name, data):
    """A policy as its repr has it, composites included, is previewed with the same values, with or without its word."""
    policy = data.draw(POLICY_STRATEGIES[name].filter(lambda policy: not carries_code(policy)))
    assert_csv_is(policy, data, *data.draw(st.sampled_from([[], ["expression"]])), repr(policy))
    assert parsed(repr(policy)) == policy


def assert_csv_is(policy, data, *words):
    steps, lr = data.draw(st.integers(1, 100)), data.draw(st.floats(0, 10))
    lines = printed("preview", *words, f"--lr={lr!r}", f"--steps={steps}", "--csv")
    values = [policy.at(step) for step in range(steps)]
    has_decay = any(one.weight_decay_factor is not None for one in values)
    assert lines[0] == "step,lr,momentum" + ",weight_decay_factor" * has_decay
    read = [[float(cell) if cell else None for cell in line.split(",")] for line in lines[1:]]
    assert read == [
        [step, lr * lr_factor, momentum, *[weight_decay] * has_decay]
        for step, (lr_factor, momentum, weight_decay) in enumerate(values)
    ]


@pytest.mark.parametrize("name", PREVIEWED)
def test_help_has_an_option_for_every_field_of_data(name, capsys, monkeypatch):
    """Each option is explained: none is left without a word."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as exit_:
        main(["preview", command_name(POLICIES[name]), "--help"])
    assert exit_.value.code == 0
    section = capsys.readouterr().out.partition("fields of the policy:\n")[2].partition("\n\n")[0]
    explained = {}
    for block in re.split(r"^  --", section, flags=re.MULTILINE)[1:]:
        option, words = " ".join(block.split()).split(maxsplit=1)
        # What is left besides rule, default, and the placeholder of the value.
        explained[option.strip(",").replace("-", "_")] = re.sub(r"\[N \.\.\.\]|\[[^N].*\]|--\S+|\b[A-Z]+\b", "", words)
    assert explained.keys() == {field.name for field in fields(POLICIES[name])} - NO_OPTION
    assert all(re.search("[a-z]", words) for words in explained.values()), explained


def test_help_tells_rule_default_and_meaning(capsys, monkeypatch):
    """The docstring's words, the rule's, and the default; a policy that refers to another has its words."""
    monkeypatch.setenv("COLUMNS", "300")
    for policy, words in (
        ("one-cycle", "fraction of the steps spent climbing. [0 <= pct_start <= 1; default: 0.3]"),
        ("one-cycle", "[1 <= total_steps; required]"),
        ("triangular2", "optimizer steps of the rising half of a cycle. [1 <= step_size_up; default: 2000]"),
    ):
        with pytest.raises(SystemExit):
            main(["preview", policy, "--help"])
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("one-cycle --total-steps 10 --pct-start 1.5", "need 0 <= pct_start <= 1, got pct_start=1.5"),
        ("one-cycle --total-steps 10.5", "need total_steps to be an int (a number of optimizer steps)"),
        ("one-cycle --total-steps ten", "need total_steps to be an int"),
        ("one-cycle --total-steps nan", "need total_steps to be an int"),
        ("one-cycle --total-steps 0", "need 1 <= total_steps, got total_steps=0"),
        ("one-cycle --total-steps 10 --anneal-strategy tanh", "need anneal_strategy to be one of 'cos', 'linear'"),
        ("one-cycle --total-steps 10 --base-momentum 0.99", "need base_momentum <= max_momentum"),
        ("one-cycle --total 10", "the following arguments are required: --total-steps"),
        ("one-cycle", "the following arguments are required: --total-steps"),
        (
            "multi-step-decay --milestones 30 20",
            "need 0 <= milestones[0] <= milestones[1] <= ..., got milestones=(30, 20)",
        ),
        ("multi-step-decay --milestones 1.5", "need milestones[0] to be an int"),
        ("exponential-decay --gamma nan", "need gamma to be a finite number, got gamma=nan"),
        ("constant --lr -1", "need lr to be a finite number >= 0, got lr=-1"),
        ("constant --lr fast", "need lr to be a finite number >= 0, got lr='fast'"),
        ("constant --steps 0", "need 1 <= steps, got steps=0"),
        ("constant --csv --out x.png", "not allowed with argument"),
        ("constant --out=", "need the name of a file"),
        ("constant --out x.unheard-of", "not supported"),
        ("one-cycle --total-steps 1" + 400 * "0", "need total_steps < 2**63"),
        ("sequential", "invalid choice: 'sequential'"),
        ("Sequential", "invalid choice: 'Sequential'"),
        ("OneCycl", "invalid choice: 'OneCycl'"),
        (
            "one-cycle --total-steps 1e30",
            "need total_steps to be an int (a number of optimizer steps), got total_steps='1e",
        ),
        ("", "required: POLICY"),
    ],
)
def test_wrong_options_are_refused_in_the_librarys_words(arguments, message, capsys, tmp_path, monkeypatch):
    """Exit status 2, argparse's form, the rule and the value."""
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, "preview", *arguments.split())
    assert error.startswith("usage: cyclic-optim preview")
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Warmup(", "need a Python expression of policies, got 'Warmup(': "),
        ("Warmup(CosineDecay(9), 1); Constant()", "need a Python expression of policies"),
        ("(" * 3000 + "1" + ")" * 3000, "need a Python expression of policies"),
        ("StepDecay(" + "+".join("1" * 5000) + ")", "need a Python expression of policies"),
        ("3 * (2)", "need an expression of a policy, got '3 * (2)'"),
        ("[Constant()]", "need an expression of a policy"),
        ("open('x')", "need a policy of this library, one of Constant, Triangular, "),
        ("__import__('os').system('true')", "need policies, numbers, strings, lists and + - * / //, got "),
        ("(lambda: Constant())()", "need policies, numbers, strings, lists and + - * / //, got "),
        ("LambdaPolicy(print)", "need policies, numbers, strings, lists and + - * / //, got 'print'"),
        ("LambdaPolicy('print')", "need fn to be callable, got fn='print'"),
        ("StepDecay(9 ** 9)", "need policies, numbers, strings, lists and + - * / //, got '9 ** 9'"),
        ("StepDecay('3' * 3)", "need a number to calculate with, got \"'3'\""),
        ("StepDecay(True + 1)", "need a number to calculate with, got 'True'"),
        ("StepDecay(1 / 0)", "need a number, got '1 / 0': division by zero"),
        ("StepDecay(6 / 2)", "need step_size to be an int"),
        ("OneCycle(**{'total_steps': 9})", "need every argument of OneCycle written out, got one with **"),
        ("OneCycle(*[9])", "need policies, numbers, strings, lists and + - * / //, got "),
        ("OneCycle()", "missing 1 required positional argument: 'total_steps'"),
        ("Product([Plateau(), Plateau()])", "need at most one policy that listens to a metric"),
        ("Combined(momentum=Constant())", "missing 1 required positional argument: 'lr'"),
        ("Scaled(Constant(), 2)", "need 0 <= factor <= 1, got factor=2"),
    ],
    ids=lambda text: text[:40],
)
def test_an_expression_that_is_none_of_a_policy_is_refused(expression, message, capsys):
    """Whatever is no call of policies with plain arguments is refused with the rule; nothing is looked up or run."""
    error = refused(capsys, "preview", expression, "--csv")
    assert error.startswith("usage: cyclic-optim preview expression")
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize("text", ["OneCycle(1e3)", "OneCycle(\n  2.5E2 * 4)", "OneCycle(1E+3, final_div_factor=1e4)"])
def test_a_whole_number_with_an_exponent_may_be_a_length(text):
    """1e3 is 1000 in an expression, as it is in the options; a fraction, or a float without exponent, is refused."""
    assert parsed(text) == OneCycle(1000)
    for wrong in ("OneCycle(1.5e0)", "OneCycle(1000.0)", "OneCycle(1e400)"):
        with pytest.raises(TypeError, match="need total_steps to be an int"):
            parsed(wrong)


def test_an_expression_may_calculate_with_numbers():
    """Lengths may be written as epochs times batches, and factors as fractions, signs included."""
    policy = parsed(" Sequential([LinearRamp(5*100, 1/4), StepDecay(+30 * 100 - 500 // 2, gamma=-(-1/2))], [500,]) ")
    assert policy == Sequential([LinearRamp(500, 0.25), StepDecay(2750, gamma=0.5)], [500])


@pytest.mark.parametrize("name", PREVIEWED)
def test_the_name_of_a_class_is_a_command(name, capsys):
    """``preview OneCycle`` is ``preview one-cycle``: the same help, and the same CSV where nothing is required."""
    requests = ["--help"] if any(field.default is MISSING for field in fields(POLICIES[name])) else ["--help", "--csv"]
    for request in requests:
        texts = []
        for word in (name, command_name(POLICIES[name])):
            with suppress(SystemExit):
                main(["preview", word, request])
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != ""


def test_a_length_may_be_written_with_an_exponent(capsys):
    """``1e3`` and ``1000.0`` are 1000 steps, for lengths, lists of lengths and ``--steps``."""
    for text in ("1e1", "10.0", "+10", "1_0"):
        assert shown(capsys, "preview", "one-cycle", "--csv", f"--total-steps={text}", f"--steps={text}") == shown(
            capsys, "preview", "one-cycle", "--csv", "--total-steps=10", "--steps=10"
        )
    assert shown(capsys, "preview", "multi-step-decay", "--csv", "--milestones", "1e1", "2.0e1") == shown(
        capsys, "preview", "multi-step-decay", "--csv", "--milestones", "10", "20"
    )


@pytest.mark.parametrize("text", ["10.5", "1e30", "nan", "ten"])
def test_a_length_that_is_none_is_refused_in_words_for_a_command_line(text, capsys):
    """The value is shown as it was typed, and nobody is told to write Python."""
    error = refused(capsys, "preview", "step-decay", "--step-size", text).splitlines()[-1]
    assert error.endswith(f"need step_size to be an int (a number of optimizer steps), got step_size={text!r}")


@pytest.mark.parametrize("name", ["OneCycle", "Triangular", "Triangular2", "ExpRange"])
def test_each_momentum_says_what_it_is(name, capsys, monkeypatch):
    """The base momentum is the one at the peak, the maximum the one at the other end of the cycle."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["preview", name, "--help"])
    text = capsys.readouterr().out
    assert re.search(r"--base-momentum NUMBER\s+momentum at the peak, the lowest\. \[", text)
    assert re.search(r"--max-momentum NUMBER\s+momentum (at both ends|between the cycles), the highest\. \[", text)


@pytest.mark.parametrize("columns", ["20", "60", "80", "300"])
@pytest.mark.parametrize("words", [[], ["preview"], ["preview", "expression"]])
def test_examples_in_the_help_can_be_copied(words, columns, capsys, monkeypatch):
    """Each example is on one line however narrow the terminal is, fits 80 columns, and runs."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert len(examples) == 2
    assert max(map(len, examples)) <= 80
    for example in examples:
        command, *arguments = shlex.split(example)
        assert command == "cyclic-optim"
        assert shown(capsys, *(word for word in arguments if word not in ("--out", "one_cycle.png")))


def test_no_command_is_refused(capsys):
    """Nothing to do is a mistake."""
    assert "required: COMMAND" in refused(capsys)


def test_list_names_every_policy(capsys):
    """Each with the first line of its docstring, without markup, and how it is previewed where it is no command."""
    text = shown(capsys, "list")
    assert [line.split()[0] for line in text.splitlines() if line[0] != " "] == list(
        map(command_name, POLICIES.values())
    )
    assert "`" not in text
    flowing = " ".join(text.split())
    assert "one-cycle Up to the peak, down again, and at the end far below" in flowing
    assert flowing.count("In code only") == len(IN_CODE_ONLY)
    assert "[In code only: fn cannot be given on a command line.]" in flowing
    assert all(f'[As an expression: preview "{name}(...)".]' in flowing for name in COMPOSITES)
    assert flowing.count("As an expression") == len(COMPOSITES)


def test_version(capsys):
    """The package's version."""
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"cyclic-optim {cyclic_optim.__version__}\n"


@pytest.mark.parametrize("name", PREVIEWED)
@settings(max_examples=10)
@given(data=st.data())
def test_a_chart_fits_the_terminal(name, data):
    """No line is wider than the terminal, and there is a curve; momentum is shown where it is cycled."""
    policy = data.draw(POLICY_STRATEGIES[name].filter(lambda policy: not carries_code(policy)))
    columns = data.draw(st.integers(30, 300))
    given_steps = data.draw(st.sampled_from([[], ["--steps=1"], ["--steps=7"]]))
    lines = printed("preview", *options_of(policy), "--lr=0.1", *given_steps, columns=columns)
    assert max(map(len, lines)) <= columns
    assert any(0x2800 < ord(letter) < 0x2900 for line in lines for letter in line)
    assert ("momentum" in lines) == (policy.at(0).momentum is not None)


def test_a_chart_shows_weight_decay_where_there_is_one(capsys):
    """The factor of weight decay has a chart of its own; without one there is none."""
    text = shown(capsys, "preview", "Combined(Constant(), weight_decay=LinearRamp(9))")
    assert [line for line in text.splitlines() if line and line[0].isalpha()][1:] == [
        "learning rate",
        "weight decay factor",
    ]
    assert "weight decay" not in shown(capsys, "preview", "Scaled(Triangular(9), 0.5)")


@pytest.mark.parametrize("columns", [1, 5, 10])
def test_a_terminal_too_narrow_for_a_chart_is_no_error(columns):
    """What does not fit is cut off."""
    assert max(map(len, printed("preview", "one-cycle", "--total-steps=9", columns=columns))) <= columns


def test_a_chart_shows_the_curve(capsys, monkeypatch):
    """A straight climb is a diagonal of stars where the terminal knows nothing but ASCII."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("cyclic_optim.__main__._glyphs", lambda: cyclic_optim.__main__.ASCII)
    lines = shown(capsys, "preview", "linear-ramp", "--total-iters=10", "--start-factor=0", "--steps=11").splitlines()
    places = [min(i for i, letter in enumerate(line) if letter == "*") for line in lines if "*" in line]
    assert len(places) == 13
    assert places == sorted(places, reverse=True)
    assert places[-1] == lines[-2].index("+") + 1
    assert lines[-1].split() == ["0", "optimizer", "step", "10"]


def test_a_terminal_without_braille_gets_ascii():
    """What the terminal cannot show is not printed, and does not end in an error."""
    result = run("preview", "one-cycle", "--total-steps=100", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout.isascii()
    assert "*" in result.stdout


def test_axis_labels_are_told_apart(capsys):
    """Momentum that hardly moves has labels with as many digits as it takes."""
    text = shown(capsys, "preview", "triangular", "--steps=10")
    labels = re.findall(r"^ *(\S+) ┤", text.partition("momentum")[2], re.MULTILINE)
    assert len(set(labels)) == 3


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (OneCycle(1000), 1100),
        (Triangular(100), 601),
        (CosineRestarts(50), 151),
        (Triangular2(100), 600),
        (StepDecay(30), 180),
        (ExponentialDecay(0.999), 10000),
        (ExponentialDecay(1), 1000),
        (Plateau(patience=20), 120),
        (Plateau(patience=0), 1000),
        (Constant(), 1000),
        (Warmup(ExponentialDecay(0.9999), 50), 300),
        (Sequential([LinearRamp(20), StepDecay(30)], [200]), 1200),
        (Combined(ExponentialDecay(0.999), momentum=Scaled(Constant(), 0.9)), 10000),
        (Warmup(Plateau(), 100), 111),
    ],
)
def test_default_steps_show_what_the_policy_does(policy, steps):
    """A bit more than the whole, or a few cycles, or until the decay has done its work."""
    assert default_steps(policy) == steps


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_out_writes_a_picture(suffix, tmp_path, capsys):
    """The file is a picture of the kind that its name says."""
    path = tmp_path / f"cycle.{suffix}"
    assert not shown(capsys, "preview", "one-cycle", "--total-steps=100", f"--out={path}")
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, capsys):
    """Exit status 1 and the reason."""
    assert main(["preview", "constant", f"--out={tmp_path / 'missing' / 'x.png'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cyclic-optim: ")
    assert "No such file or directory" in error
    assert error.count("\n") == 1


def test_without_matplotlib_out_names_the_cure_and_the_chart_works(tmp_path):
    """Exit status 1 and what to install; the chart and the CSV need no matplotlib."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from cyclic_optim.__main__ import main\n"
        "assert main(['preview', 'constant', '--csv']) == main(['preview', 'constant']) == 0\n"
        f"sys.exit(main(['preview', 'constant', '--out', {str(tmp_path / 'x.png')!r}]))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert result.returncode == 1
    assert ": pip install matplotlib, or in a checkout pip install '.[plot]' (" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line_needs_no_torch():
    """Without torch the list, the chart and the CSV are printed, the same as with it."""
    requests = ["list"], ["preview", "one-cycle", "--total-steps=9"], ["preview", "plateau", "--steps=3", "--csv"]
    requests += (["preview", "Combined(Warmup(CosineDecay(90), 10), weight_decay=Constant())"],)
    for request in requests:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from cyclic_optim.__main__ import main\n"
            f"sys.exit(main({request!r}))"
        )
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == run(*request, COLUMNS="80").stdout != ""


def test_as_a_process():
    """``python -m cyclic_optim`` prints, and passes the exit status on."""
    result = run("preview", "step-decay", "--step-size=2", "--lr=0.5", "--steps=3", "--csv")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "step,lr,momentum\n0,0.5,\n1,0.5,\n2,0.05,\n"
    wrong = run("preview", "step-decay", "--step-size=0")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].endswith("need 1 <= step_size, got step_size=0")
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("arguments", [["preview", "constant", "--csv", "--steps=1000000"], ["list"], ["--help"]])
def test_a_reader_that_leaves_early_is_no_error(arguments):
    """A broken pipe ends the output without a word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cyclic_optim", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)


def test_importing_the_package_does_not_import_the_command_line():
    """The command line is there for those who call it."""
    code = "import sys, cyclic_optim; print(*(name for name in sys.modules if name.startswith('cyclic_optim')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cyclic_optim.__main__" not in loaded
