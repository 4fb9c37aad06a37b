"""What a change of the package costs: the working tree beside another commit, in one process and one run.

Run it with::

    pip install -e '.[bench]'
    python benchmarks/before_after.py --commit HEAD~1                        # some ten minutes
    python benchmarks/before_after.py --commit HEAD~1 --quick                # 5 rounds, without GPT-2
    python benchmarks/before_after.py --commit v0.1.0 --only step --models 4 resnet18

and find in ``build/benchmarks`` (or where ``--out`` says) ``before_after.md``, the tables, and
``before_after.json``, every number behind them.

The commit's package is taken from git into a temporary folder, renamed and compiled there, and imported beside the
working tree's. Both take turns (``harness.interleaved``): what counts is the ratio of after to before in the same
round; below 1, the working tree is faster. The commit takes part twice; the ratio of these two shows the noise.

1. ``step``: a step of CyclicSGD with OneCycle, on the models of ``step_cost.py``, same parameters and gradients.
2. ``policies``: a step with each policy, with 1 and with 200 groups, of one tensor of one element each.
3. ``groups``: what 200 policies cost for 200 groups, over one policy for all of them. After only.
4. ``adamw``: what CyclicAdamW and torch's scheduler each add to a step of torch's AdamW. After only.
5. ``capturable``: what a step with ``capturable=True`` costs on the host: outside a graph, and with an update that
   does nothing.
6. ``report``: ``report()`` of a capturable optimizer with Plateau, for metrics that improve and for others.
7. ``import``: ``from cyclic_optim import CyclicSGD`` once torch is there, in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from commits import ROOT, commit_named, working_tree
from harness import (
    Call,
    Times,
    as_json,
    command_line,
    environment,
    environment_line,
    interleaved,
    markdown_table,
    progress,
    ratios,
    rounded,
    run_benchmark,
    spread,
    timing_options,
    use_threads,
    write_results,
)
from schedule_cost import in_a_process, plural, policies
from step_cost import (
    MODELS,
    MOMENTUM,
    PEAK,
    QUICK_ROUNDS,
    STEP_SIZE_UP,
    TOTAL_STEPS,
    Groups,
    make_groups,
    one_cycle_lr,
    stepping,
)
from torch.optim import AdamW

import cyclic_optim
from cyclic_optim import Policy

BEFORE, AGAIN, AFTER = "before", "before, again", "after"
NAME = "cyclic_optim_before"  # of the commit's package
FLAGS = ["-O3", "-ffp-contract=off"]  # as in setup.py
ROUNDS = 100
SLOW_ROUNDS = 30  # for what takes many milliseconds
GROUPS = (1, 200)
TENSORS = (100, 1000, 10_000)
TENSOR_GROUPS = (1, 100)
ADAMW_MODELS = ("4", "1000")

Make = Callable[[ModuleType], Call]  # from one of the two packages


# -- the two packages -------------------------------------------------------------------------------


@contextlib.contextmanager
def package_of(commit: str) -> Iterator[ModuleType]:
    """The commit's package, under another name."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        check_out(commit, Path(folder))
        compile_extensions(Path(folder))
        sys.path.append(folder)
        try:
            yield importlib.import_module(NAME)
        finally:
            sys.path.remove(folder)


def check_out(commit: str, folder: Path) -> None:
    """Put the commit's package into the folder; it is renamed in its own code, too."""
    archive = subprocess.run(
        ["git", "archive", "--format=zip", commit, "cyclic_optim"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
    (folder / "cyclic_optim").rename(folder / NAME)
    for source in (folder / NAME).rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        source.write_text(re.sub(r"\bcyclic_optim\b", NAME, text), encoding="utf-8")


def compile_extensions(folder: Path) -> None:
    """Compile every C file of the package beside itself. Without a compiler the package works all the same."""
    from setuptools import Distribution, Extension

    extensions = [
        Extension(
            ".".join(source.relative_to(folder).with_suffix("").parts),
            [str(source)],
            extra_compile_args=FLAGS,
            optional=True,
        )
        for source in (folder / NAME).rglob("*.c")
    ]
    command = Distribution({"name": NAME, "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "build")
    command.ensure_finalized()
    command.run()


def is_compiled(package: ModuleType) -> bool:
    """Whether its C extension is in use."""
    _ = package.CyclicSGD  # imports it
    return any(name.startswith(f"{package.__name__}.") and name.endswith("._native") for name in sys.modules)


@contextlib.contextmanager
def without_device_update() -> Iterator[None]:
    """Capturable steps update nothing, in both packages: the one place that knows where the update is chosen."""

    def no_update(*_: Any, **__: Any) -> Call:
        return lambda *_, **__: None

    name = "choose_device_update"
    with contextlib.ExitStack() as patches:
        for package in (cyclic_optim.__name__, NAME):
            modules = [module for key, module in sys.modules.items() if key.startswith(f"{package}.")]
            homes = [module for module in modules if hasattr(module, name)]
            if not homes:
                raise RuntimeError(f"need {name} in a module of {package}, got none: look where the update is chosen")
            for module in homes:
                patches.enter_context(patch.object(module, name, no_update))
        yield


def made_by(package: ModuleType, value: Any) -> Any:
    """A policy, and those in its fields, made anew by another package, which may lack newer fields."""
    if isinstance(value, Policy):
        made = getattr(package, type(value).__name__)
        fields = [field.name for field in dataclasses.fields(made) if field.init]
        return made(**{name: made_by(package, getattr(value, name)) for name in fields})
    return type(value)(made_by(package, item) for item in value) if isinstance(value, (list, tuple)) else value


# -- measuring --------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What is compared, and how often."""

    before: ModuleType
    after: ModuleType
    rounds: int
    models: list[str]


class Part(NamedTuple):
    """The numbers for the record, and the text for the report."""

    record: dict[str, Any]
    text: str


def compare(setting: Setting, make: Make, label: str, rounds: int | None = None) -> Times:
    """The commit twice, the working tree once."""
    calls = {BEFORE: make(setting.before), AGAIN: make(setting.before), AFTER: make(setting.after)}
    return interleaved(calls, min(setting.rounds, rounds or setting.rounds), label=label)


def copied(groups: Groups) -> Groups:
    """The same parameters in dicts of the optimizer's own."""
    return [dict(group) for group in groups]


def cyclic_sgd(package: ModuleType, groups: Groups, policy: Any, **options: Any) -> Any:
    return package.CyclicSGD(copied(groups), momentum=MOMENTUM, policy=policy, **options)


def differences(times: Times, name: str, reference: str, parts: int = 1) -> list[float]:
    """The seconds that ``name`` took more than the reference, round by round, for each of ``parts``."""
    return [(more - less) / parts for more, less in zip(times[name], times[reference], strict=True)]


def measure_steps(setting: Setting) -> Part:
    compared = {}
    for key in setting.models:
        model = MODELS[key]
        groups = make_groups(model.shapes, model.group_each)
        make = making_step(groups, lambda package: package.OneCycle(TOTAL_STEPS))
        compared[model.title] = compare(setting, make, model.title, model.rounds)
    return compared_part(compared, "A step of CyclicSGD with OneCycle", "model", 1e6, "microseconds")


def making_step(groups: Groups, policy: Callable[[ModuleType], Any]) -> Make:
    return lambda package: stepping(cyclic_sgd(package, groups, policy(package)))


def measure_policies(setting: Setting) -> Part:
    parts = {count: measure_policies_of(setting, count) for count in GROUPS}
    texts = [part.text for part in parts.values()]
    return Part({str(count): part.record for count, part in parts.items()}, "\n".join(texts))


def measure_policies_of(setting: Setting, count: int) -> Part:
    groups = make_groups(count * [(1,)], group_each=True)
    compared = {}
    for name, policy in policies().items():
        if hasattr(setting.before, name):
            make = making_step(groups, lambda package, policy=policy: made_by(package, policy))
            compared[name] = compare(setting, make, f"{name}, {plural(count)}")
    title = f"A step of CyclicSGD with {plural(count)}, each of one tensor of one element"
    return compared_part(compared, title, "policy", 1e6, "microseconds")


def measure_groups(setting: Setting) -> Part:
    count = GROUPS[-1]
    groups = make_groups(count * [(1,)], group_each=True)
    own = [{**group, "policy": several(setting.after, index)} for index, group in enumerate(groups)]
    optimizers = {"several": several_policies(setting.after, own), "one": several_policies(setting.after, groups)}
    ignored = len(factors(optimizers["several"])) == 1
    times = interleaved({name: stepping(optimizer) for name, optimizer in optimizers.items()}, setting.rounds)
    more = spread(differences(times, "several", "one", parts=count)).text(scale=1e6)
    note = " The groups' policies were ignored: this says nothing about several policies." if ignored else ""
    text = f"{count} policies for {count} groups take {more} microseconds per group more than one for all.{note}\n"
    return Part({"ignored": ignored, "seconds": rounded(times)}, text)


def several(package: ModuleType, index: int) -> Any:
    return package.OneCycle(TOTAL_STEPS + index, div_factor=25 + index)


def several_policies(package: ModuleType, groups: Groups) -> Any:
    return cyclic_sgd(package, groups, several(package, 0))


def factors(optimizer: Any) -> set[float]:
    """The different fractions of their peaks that the groups' rates stand at, without rounding errors."""
    return {round(group["lr"] / group["max_lr"], 9) for group in optimizer.param_groups}


def measure_adamw(setting: Setting) -> Part:
    if not hasattr(setting.after, "CyclicAdamW"):
        return Part({"left_out": "no CyclicAdamW"}, "CyclicAdamW: left out, the working tree has none.\n")
    cases = itertools.product(ADAMW_MODELS, ("default flags", "fused=True"))
    times = {f"{MODELS[key].title}, {flags}": measure_adamw_on(setting, key, flags) for key, flags in cases}
    added = {
        name: [spread(differences(of_each, other, "AdamW")).text(scale=1e6) for other in of_each if other != "AdamW"]
        for name, of_each in times.items()
    }
    header = ["model", "CyclicAdamW with OneCycle", "AdamW and OneCycleLR"]
    rows = [[name, *cells] for name, cells in added.items()]
    text = f"Microseconds over a step of torch's AdamW, median and [quartiles]:\n\n{markdown_table(header, rows)}\n"
    return Part({"seconds": {name: rounded(of_each) for name, of_each in times.items()}}, text)


def measure_adamw_on(setting: Setting, key: str, flags: str) -> Times:
    groups = make_groups(MODELS[key].shapes)
    options = {"fused": True} if flags == "fused=True" else {}
    bare, scheduled = (AdamW(copied(groups), lr=PEAK, **options) for _ in range(2))
    policy = setting.after.OneCycle(TOTAL_STEPS)
    cyclic = setting.after.CyclicAdamW(copied(groups), lr=PEAK, policy=policy, **options)
    calls = {
        "AdamW": stepping(bare),
        "CyclicAdamW, OneCycle": stepping(cyclic),
        "AdamW, OneCycleLR": stepping(scheduled, one_cycle_lr(scheduled)),
    }
    return interleaved(calls, setting.rounds, label=f"AdamW, {MODELS[key].title}, {flags}")


def measure_capturable(setting: Setting) -> Part:
    compared = {}
    for package in (setting.before, setting.after):
        making_capturable_step(make_groups([(1,)]))(package)  # imports the device path, whose update is replaced
    with without_device_update():
        for tensors, count in itertools.product(TENSORS, TENSOR_GROUPS):
            title = f"{tensors:,} in {plural(count)}"
            groups = [make_groups(tensors // count * [(1,)])[0] for _ in range(count)]
            times = compare(setting, making_capturable_step(groups), f"capturable, {title}", SLOW_ROUNDS)
            compared[title] = {name: [value / tensors for value in seconds] for name, seconds in times.items()}
    title = "A step with capturable=True on the host, without its update"
    return compared_part(compared, title, "tensors", 1e6, "microseconds per tensor")


def making_capturable_step(groups: Groups) -> Make:
    return lambda package: stepping(cyclic_sgd(package, groups, package.Triangular(STEP_SIZE_UP), capturable=True))


def measure_reports(setting: Setting) -> Part:
    compared = {}
    for better, count in itertools.product((True, False), TENSOR_GROUPS):
        title = f"{'the metric improves' if better else 'the rate is lowered'}, {plural(count)}"
        make = reporting(make_groups(count * [(1,)], group_each=True), better)
        compared[title] = compare(setting, make, title, SLOW_ROUNDS)
    return compared_part(compared, "report() with capturable=True and Plateau", "report", 1e3, "milliseconds")


def reporting(groups: Groups, better: bool) -> Make:
    def make(package: ModuleType) -> Call:
        # Lowers the rate with every report that is no better, and can go on and on with it.
        policy = package.Plateau(patience=0, factor=0.999, eps=0.0)
        optimizer = cyclic_sgd(package, groups, policy, capturable=True)
        metrics = itertools.count(0.0, -1.0) if better else itertools.repeat(1.0)
        return lambda: optimizer.report(next(metrics))

    return make


def measure_imports(setting: Setting) -> Part:
    contenders = {BEFORE: setting.before, AGAIN: setting.before, AFTER: setting.after}
    times: Times = {name: [] for name in contenders}
    order = random.Random(0)
    seconds_to_import(setting.before), seconds_to_import(setting.after)  # Python keeps what it compiled
    for _ in progress([*range(max(2, setting.rounds // 5))], "importing", "round"):
        for name in order.sample([*contenders], len(contenders)):
            times[name].append(seconds_to_import(contenders[name]))
    title = "`from cyclic_optim import CyclicSGD` after torch"
    return compared_part({"CyclicSGD": times}, title, "import", 1e3, "milliseconds")


def seconds_to_import(package: ModuleType) -> float:
    line = f"from {package.__name__} import CyclicSGD"
    code = f"import time, torch; started = time.perf_counter(); {line}; print(time.perf_counter() - started)"
    folder = str(Path(package.__file__ or "").parent.parent)
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return float(in_a_process(code, PYTHONPATH=paths))


PARTS: dict[str, Callable[[Setting], Part]] = {
    "step": measure_steps,
    "policies": measure_policies,
    "groups": measure_groups,
    "adamw": measure_adamw,
    "capturable": measure_capturable,
    "report": measure_reports,
    "import": measure_imports,
}


# -- the tables -------------------------------------------------------------------------------------


def compared_part(compared: dict[str, Times], title: str, corner: str, scale: float, unit: str) -> Part:
    over_before = {name: ratios(times, BEFORE) for name, times in compared.items()}
    rows = []
    for name, times in compared.items():
        cells = [over_before[name][other].text() for other in (AFTER, AGAIN)]
        rows.append([name, *cells, *(spread(times[each]).text(scale) for each in (BEFORE, AFTER))])
    header = [corner, "after / before", "before / before", f"before, {unit}", f"after, {unit}"]
    record = {
        name: {
            "ratios": {other: over_before[name][other]._asdict() for other in (AFTER, AGAIN)},
            "seconds": rounded(times),
        }
        for name, times in compared.items()
    }
    return Part(record, f"{title}:\n\n{markdown_table(header, rows)}\n")


def report(parts: dict[str, Part], where: dict[str, Any], commits: dict[str, str], command: str) -> str:
    sections = "\n".join(part.text for part in parts.values())
    return f"""\
`{command}`

{environment_line(where)}

- before: {commits[BEFORE]}
- after: {commits[AFTER]}

Medians and [quartiles]. Ratios are of each round; below 1, the code after is faster. Before / before is the same code
measured twice: the noise.

{sections}"""


# -- running it -------------------------------------------------------------------------------------


def experiment(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment()
    commits = {BEFORE: commit_named(options.commit), AFTER: working_tree("cyclic_optim")}
    with package_of(options.commit) as before:
        setting = Setting(before, cyclic_optim, options.rounds, options.models)
        for name, package in ((BEFORE, before), (AFTER, cyclic_optim)):
            commits[name] += "" if is_compiled(package) else ", without its compiled part"
        parts = {name: PARTS[name](setting) for name in options.only}
    text = report(parts, where, commits, command)
    record = {
        "command": command,
        "environment": where,
        "commits": commits,
        "seconds": round(time.perf_counter() - started, 1),
        **{name: part.record for name, part in parts.items()},
    }
    write_results(options.out, {"before_after.json": as_json(record), "before_after.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {options.out}")


def parse() -> argparse.Namespace:
    parser = timing_options(__doc__.splitlines()[0], quick=f"{QUICK_ROUNDS} rounds, without GPT-2")
    parser.add_argument("--commit", required=True, metavar="REV", help="what to compare with, as git names it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="(default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="of step (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"(default: {ROUNDS}; fewer for what is slow)")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    check(options, parser)
    options.models = options.models or [key for key in MODELS if key != "gpt2" or not options.quick]
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.rounds is not None and options.rounds < 2:
        parser.error(f"need --rounds >= 2, got {options.rounds}")
    if Path(cyclic_optim.__file__).resolve().parent.parent != ROOT:
        parser.error(f"need the working tree's cyclic_optim, got {cyclic_optim.__file__}: pip install -e .")
    try:
        commit_named(options.commit)
    except subprocess.CalledProcessError as error:
        parser.error(f"need --commit to name a commit, got {options.commit!r}: {error.stderr.strip()}")


def main() -> int:
    options = parse()
    return run_benchmark(lambda: experiment(options), needs=("setuptools",))


if __name__ == "__main__":
    raise SystemExit(main())
