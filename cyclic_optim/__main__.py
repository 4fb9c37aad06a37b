"""The command line, ``python -m cyclic_optim`` or ``cyclic-optim``: list the policies, show one. It needs no torch."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from typing import Any, NamedTuple

from . import __version__
from .plotting import (
    DEFAULT_STEPS,
    OTHERS,
    Moment,
    brief,
    check_arguments,
    default_steps,
    needs_log,
    plot_policy,
    require_matplotlib,
    sampled,
    trace,
)
from .policies import POLICIES, Policy
from .policies.base import is_required
from .policies.expression import parsed
from .rules import Rule, finite, whole

WIDEST_CHART = 100
LR_ROWS, OTHER_ROWS = 13, 7  # odd: one row is the middle
EXPRESSION = "expression"
METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", str: "WORD", tuple: "N"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments (default: those of the process).

    Returns:
        The exit status: 0, or 1 where the arguments are right but the request failed.

    Raises:
        SystemExit: status 2 for wrong arguments, 0 after ``--help`` and ``--version``.
    """
    try:
        try:
            arguments = command_line().parse_args(_by_command(sys.argv[1:] if argv is None else argv))
            return int(arguments.run(arguments))
        finally:
            # At Python's exit a broken pipe could not be caught.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at its exit: the rest is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130  # the exit status in shells


def _by_command(argv: Sequence[str]) -> Sequence[str]:
    """The arguments, with a command where ``preview`` is given an expression or the name of a policy's class."""
    if len(argv) < 2 or argv[0] != "preview":
        return argv
    if "(" in argv[1] and not argv[1].startswith("-"):
        return [argv[0], EXPRESSION, *argv[1:]]
    if argv[1] in POLICIES and not _code_only(POLICIES[argv[1]]):
        return [argv[0], command_name(POLICIES[argv[1]]), *argv[2:]]
    return argv


# --- the arguments, from the policies' fields

_EXAMPLES: dict[str, Any] = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,  # a wrapped example could not be copied
    "epilog": "examples:\n"
    "  cyclic-optim preview one-cycle --total-steps 1000 --lr 0.1 --out one_cycle.png\n"
    '  cyclic-optim preview "Warmup(CosineDecay(900), 100)"',
}


def command_line() -> argparse.ArgumentParser:
    """The parser, with a command for every policy whose required fields can be given as options."""
    parser = argparse.ArgumentParser(
        prog="cyclic-optim",
        description="Show the learning-rate and momentum schedules of cyclic_optim.",
        allow_abbrev=False,
        **_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"cyclic-optim {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="list all policies", allow_abbrev=False)
    listing.set_defaults(run=_list)
    preview = commands.add_parser(
        "preview", help="show lr, momentum and weight decay over the steps", allow_abbrev=False, **_EXAMPLES
    )
    policies = preview.add_subparsers(title="policies", metavar="POLICY", required=True)
    for policy in POLICIES.values():
        if not _code_only(policy):
            _add_policy(policies, policy)
    _add_expression(policies)
    return parser


def _add_policy(policies: Any, policy: type[Policy]) -> None:
    summary, documented = _summary(policy), _documented(policy)
    parser = policies.add_parser(
        command_name(policy), help=_escaped(summary), description=_escaped(summary), allow_abbrev=False
    )
    parser.set_defaults(run=_preview, policy=policy, parser=parser)
    group = parser.add_argument_group("fields of the policy")
    for field in option_fields(policy):
        _add_field(group, field, documented.get(field.name, ""))
    _add_showing(parser)


def _add_expression(policies: Any) -> None:
    summary = "A Python expression of policies. The word 'expression' may be omitted."
    parser = policies.add_parser(EXPRESSION, help=summary, description=summary, allow_abbrev=False, **_EXAMPLES)
    parser.set_defaults(run=_preview, policy=None, parser=parser)
    parser.add_argument(
        EXPRESSION, metavar="EXPRESSION", help="policies with their arguments; parsed, never run as code"
    )
    _add_showing(parser)


def _add_showing(parser: argparse.ArgumentParser) -> None:
    lr_type = _converted("lr", lambda name, value: finite(name, value, minimum=0))
    shown = parser.add_argument_group("what to show")
    shown.add_argument("--lr", type=lr_type, default=1.0, metavar="NUMBER", help="the peak rate (default: 1)")
    steps_type = _converted("steps", whole(1)["rule"])
    shown.add_argument(
        "--steps", type=steps_type, metavar="N", help=f"the number of steps to show (default: {DEFAULT_STEPS})"
    )
    output = shown.add_mutually_exclusive_group()
    output.add_argument(
        "--out", type=_file_name, metavar="FILE", help="write a picture (.png, .svg or .pdf; needs matplotlib)"
    )
    output.add_argument(
        "--csv",
        action="store_true",
        help="print step,lr,momentum for every step, and weight_decay_factor if the policy sets it",
    )


def _add_field(group: argparse._ArgumentGroup, field: Field[Any], documented: str) -> None:
    rule: Rule = field.metadata["rule"]
    option = "--" + field.name.replace("_", "-")
    # None means "not given": the policy's default is then used.
    common: dict[str, Any] = {"dest": field.name, "help": _escaped(_help(field, rule, documented)), "default": None}
    if rule.kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
        return
    common.update(required=is_required(field), metavar=METAVARS[rule.kind])
    if rule.kind is tuple:
        # The rule for the whole sequence is checked by the policy.
        group.add_argument(option, nargs="*", type=_length, **common)
    else:
        group.add_argument(option, type=_converted(field.name, rule), **common)


def _help(field: Field[Any], rule: Rule, documented: str) -> str:
    """The docstring's text for a field, and in brackets its rule and its default."""
    notes = [rule.text.format(field.name)] if rule.text else []
    if is_required(field):
        notes.append("required")
    elif field.default is not None:
        notes.append(f"default: {field.default}")
    return f"{documented} [{'; '.join(notes)}]" if notes else documented


def command_name(policy: type[Policy]) -> str:
    """The policy's name on the command line, such as ``one-cycle`` for ``OneCycle``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", policy.__name__).lower()


def option_fields(policy: type[Policy]) -> list[Field[Any]]:
    """The fields that can be given as options: those of plain data."""
    rules = [(field, field.metadata.get("rule")) for field in _fields(policy)]
    return [field for field, rule in rules if rule is not None and (rule.kind is bool or rule.kind in METAVARS)]


def _code_only(policy: type[Policy]) -> list[str]:
    """The required fields that cannot be given as options: functions and policies."""
    offered = option_fields(policy)
    return [field.name for field in _fields(policy) if field not in offered and is_required(field)]


def _fields(policy: type[Policy]) -> tuple[Field[Any], ...]:
    return fields(policy)  # type: ignore[arg-type]  # all of the table are dataclasses


def _number(text: str) -> int | float | str:
    """``text`` as a number, or ``text`` where it is none: the rule of the policy decides."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def _length(text: str) -> int | str:
    """``text`` as a number of steps, also ``1e3``, or ``text`` where it is none: the rule of the policy decides."""
    number = _number(text)
    # Beyond 2**53 a float may be another number than the text says.
    if isinstance(number, float) and number.is_integer() and abs(number) <= 2**53:
        return int(number)
    return number if isinstance(number, int) else text


#: By a rule's kind: how a text becomes a value. Numbers are read by `_number`.
_READ: dict[Any, Callable[[str], Any]] = {str: str, int: _length}


def _file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("need the name of a file, got ''")
    return text


def _converted(name: str, rule: Rule | Callable[[str, Any], Any]) -> Callable[[str], Any]:
    """An argparse type: converts the text by ``rule``, and raises its error as argparse's."""
    read = _READ.get(rule.kind, _number) if isinstance(rule, Rule) else _number

    def convert(text: str) -> Any:
        try:
            return rule(name, read(text))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


# --- texts from the docstrings


def _docstring(policy: type[Policy]) -> str:
    return inspect.cleandoc(policy.__doc__ or "")


def _plain(text: str) -> str:
    """The text without the markup of roles and literals."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats its help


def _summary(policy: type[Policy]) -> str:
    return _plain(_docstring(policy).partition("\n")[0])


def _documented(policy: type[Policy]) -> dict[str, str]:
    """Each argument's text in the Args section, and in those of the policies that the docstring names."""
    docstring, documented = _docstring(policy), {}
    for name in re.findall(r":class:`(\w+)`", docstring):
        documented.update(_args_section(_docstring(POLICIES[name])) if name in POLICIES else {})
    return documented | _args_section(docstring)


def _args_section(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w[\w, ]*): ((?:.*\n?)(?: {5,}.*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for names, text in entries for name in names.split(", ")}


# --- the commands


def _list(arguments: argparse.Namespace) -> int:
    indent = 2 + max(len(command_name(policy)) for policy in POLICIES.values())
    for policy in POLICIES.values():
        note = _note(policy)
        wrapper = textwrap.TextWrapper(
            max(_columns(), 2 * indent), subsequent_indent=" " * indent, break_on_hyphens=False
        )
        print(wrapper.fill(f"{command_name(policy):{indent}}{_summary(policy)}{note}"))
    return 0


def _note(policy: type[Policy]) -> str:
    """How a policy is previewed that has no command of its own."""
    missing = _code_only(policy)
    if not missing:
        return ""
    if any("rule" in field.metadata for field in _fields(policy) if field.name in missing):
        return f" [In code only: {', '.join(missing)} cannot be given on a command line.]"
    return f' [As an expression: preview "{policy.__name__}(...)".]'


def _policy(arguments: argparse.Namespace) -> Policy:
    """The policy that the options, or the expression, describe."""
    if arguments.policy is None:
        return parsed(arguments.expression)
    given = {field.name: getattr(arguments, field.name) for field in option_fields(arguments.policy)}
    policy: Policy = arguments.policy(**{name: value for name, value in given.items() if value is not None})
    return policy


def _preview(arguments: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = arguments.parser
    try:
        policy = _policy(arguments)
        wanted = default_steps(policy) if arguments.steps is None else arguments.steps
        steps, lr = check_arguments(policy, wanted, arguments.lr)
        if arguments.csv:
            return _print_csv(policy, steps, lr)
        if arguments.out is not None:
            return _save(policy, steps, lr, arguments.out)
        return _print_chart(policy, steps, lr)
    except (TypeError, ValueError, OverflowError) as error:
        parser.error(str(error))


def _print_csv(policy: Policy, steps: int, lr: float) -> int:
    has_decay = any(moment.weight_decay_factor is not None for moment in trace(policy, range(steps), lr))
    columns = Moment._fields if has_decay else Moment._fields[:-1]
    print(",".join(columns))
    for moment in trace(policy, range(steps), lr):
        print(",".join("" if value is None else repr(value) for value in moment[: len(columns)]))
    return 0


def _save(policy: Policy, steps: int, lr: float, path: str) -> int:
    try:
        require_matplotlib()
        # pyplot would look for a screen.
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        plot_policy(policy, steps, lr, figure.subplots())
        figure.savefig(path, dpi=150)
    except (ImportError, OSError) as error:
        print(f"cyclic-optim: {error}", file=sys.stderr)
        return 1
    return 0


# --- a chart for the terminal


class _Glyphs(NamedTuple):
    """The characters of a chart: dots per cell (across, down), the function that draws them, and the axes."""

    across: int
    down: int
    cell: Callable[[set[tuple[int, int]]], str]
    upright: str
    tick: str
    corner: str
    level: str


_BRAILLE_BITS = {(0, 0): 0x01, (0, 1): 0x02, (0, 2): 0x04, (1, 0): 0x08, (1, 1): 0x10, (1, 2): 0x20}
_BRAILLE_BITS |= {(0, 3): 0x40, (1, 3): 0x80}  # added to the script later, hence the order
BRAILLE = _Glyphs(2, 4, lambda dots: chr(0x2800 + sum(_BRAILLE_BITS[dot] for dot in dots)) if dots else " ", *"│┤└─")
ASCII = _Glyphs(1, 1, lambda dots: "*" if dots else " ", *"|++-")


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _glyphs() -> _Glyphs:
    try:
        "⣿│┤└─".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return BRAILLE


def _print_chart(policy: Policy, steps: int, lr: float) -> int:
    moments = list(trace(policy, sampled(steps), lr))
    columns = min(_columns(), WIDEST_CHART)
    lines = [brief(policy, columns), *_lr_chart(moments, columns)]
    for name, read in OTHERS.items():
        points = [(moment.step, value) for moment in moments if (value := read(moment)) is not None]
        if points:
            lines += ["", name, *_other_chart(points, columns)]
    for line in lines:
        print(line[:columns].rstrip())
    return 0


def _lr_chart(moments: list[Moment], columns: int) -> list[str]:
    rates = [moment.lr for moment in moments]
    if needs_log(rates):
        points = [(moment.step, math.log10(moment.lr)) for moment in moments]
        low, high = math.log10(min(rates)), math.log10(max(rates))
        return ["learning rate (log scale)", *_chart(points, low, high, LR_ROWS, columns, lambda level: 10**level)]
    points = [(moment.step, moment.lr) for moment in moments]
    return ["learning rate", *_chart(points, 0.0, max(rates) or 1.0, LR_ROWS, columns)]


def _other_chart(points: list[tuple[int, float]], columns: int) -> list[str]:
    levels = [level for _, level in points]
    low, high = min(levels), max(levels)
    if low == high:
        low, high = low - 0.05, high + 0.05
    return _chart(points, low, high, OTHER_ROWS, columns)


def _chart(
    points: list[tuple[int, float]],
    low: float,
    high: float,
    rows: int,
    columns: int,
    shown: Callable[[float], float] = lambda level: level,
) -> list[str]:
    """The lines of a chart of these (step, level); ``shown`` converts a level to the number at the axis."""
    glyphs = _glyphs()
    levels = (high, (low + high) / 2, low)
    labels = dict(zip((0, rows // 2, rows - 1), _labels([shown(level) for level in levels]), strict=True))
    margin = 1 + max(map(len, labels.values()))
    width = max(1, columns - margin - 2)
    cells = _cells(points, low, high, rows, width, glyphs)
    lines = [
        f"{labels.get(row, ''):>{margin}} {glyphs.tick if row in labels else glyphs.upright}"
        + "".join(glyphs.cell(cells.get((column, row), set())) for column in range(width))
        for row in range(rows)
    ]
    axis = " " * (margin + 1) + glyphs.corner + glyphs.level * width
    return [*lines, axis, " " * (margin + 2) + _step_labels(points[0][0], points[-1][0], width)]


def _labels(levels: Sequence[float]) -> list[str]:
    """The levels with as few digits as make them differ, at least three."""
    for digits in range(3, 18):
        labels = [f"{level:.{digits}g}" for level in levels]
        if len(set(labels)) == len(labels):
            break
    return labels


def _step_labels(first: int, last: int, width: int) -> str:
    left, middle, right = f"{first:,}", "optimizer step", f"{last:,}"
    if len(left) + len(middle) + len(right) + 4 > width:
        middle = ""
    return left + middle.center(max(1, width - len(left) - len(right))) + right


def _cells(
    points: list[tuple[int, float]], low: float, high: float, rows: int, width: int, glyphs: _Glyphs
) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """The dots of the curve, by their cell; columns and rows are counted from the upper left."""
    first, last = points[0][0], points[-1][0]
    across, down = width * glyphs.across - 1, rows * glyphs.down - 1
    places = [
        (round((step - first) / max(1, last - first) * across), round((high - level) / (high - low) * down))
        for step, level in points
    ]
    cells: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for start, stop in zip(places, places[1:] or places, strict=False):
        for x, y in _line(start, stop):
            column, row = x // glyphs.across, y // glyphs.down
            cells.setdefault((column, row), set()).add((x % glyphs.across, y % glyphs.down))
    return cells


def _line(start: tuple[int, int], stop: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one to another."""
    (x, y), (dx, dy) = start, (stop[0] - start[0], stop[1] - start[1])
    count = max(abs(dx), abs(dy), 1)
    return [(x + round(i * dx / count), y + round(i * dy / count)) for i in range(count + 1)]


if __name__ == "__main__":
    sys.exit(main())
