"""The gallery: every policy and every recipe with its curve, drawn from the policy itself."""

import html
import importlib.util
import inspect
import math
import re
from pathlib import Path
from typing import Any

import figures
import matplotlib as mpl
from matplotlib.figure import Figure

from cyclic_optim import Policy, Values, plot_policy
from cyclic_optim.plotting import brief
from cyclic_optim.policies import POLICIES

ROOT = Path(__file__).resolve().parents[2]

#: How many steps to draw of each policy, and the policy as one writes it. A new policy needs a row.
EXAMPLES = {
    "Constant": (100, "Constant()"),
    "Triangular": (400, "Triangular(step_size_up=50)"),
    "Triangular2": (400, "Triangular2(step_size_up=50)"),
    "ExpRange": (400, "ExpRange(step_size_up=50, gamma=0.995)"),
    "OneCycle": (1000, "OneCycle(total_steps=1000)"),
    "CosineRestarts": (700, "CosineRestarts(t_0=100, t_mult=2)"),
    "CosineDecay": (250, "CosineDecay(t_max=200)"),
    "CosineWave": (400, "CosineWave(t_max=100)"),
    "PolynomialDecay": (250, "PolynomialDecay(total_iters=200, power=2)"),
    "ExponentialDecay": (200, "ExponentialDecay(gamma=0.98)"),
    "StepDecay": (120, "StepDecay(step_size=30, gamma=0.5)"),
    "MultiStepDecay": (120, "MultiStepDecay([60, 90], gamma=0.3)"),
    "InverseTimeDecay": (200, "InverseTimeDecay(k=0.05)"),
    "LinearDecay": (250, "LinearDecay(total_steps=200, warmup=20)"),
    "WarmupStableDecay": (250, 'WarmupStableDecay(total_steps=200, warmup=20, decay=50, shape="sqrt")'),
    "LinearRamp": (150, "LinearRamp(total_iters=100)"),
    "ExponentialRamp": (101, "ExponentialRamp(total_iters=100, start_factor=1e-8)"),
    "Sequential": (251, "Sequential([Constant(), LinearRamp(100, 1.0, 0.0)], milestones=[150])"),
    "Warmup": (250, "Warmup(CosineDecay(200), total_iters=20)"),
    "Product": (400, "Product([Triangular(50), ExponentialDecay(0.995)])"),
    "Combined": (
        300,
        "Combined(lr=LinearDecay(300, warmup=30), momentum=LinearRamp(100, 0.85, 0.95),"
        " weight_decay=LinearRamp(300, 1.0, 0.0))",
    ),
    "Staircase": (100, "Staircase(CosineDecay(10), length=10)"),
    "Scaled": (400, "Sequential([Triangular(50), Scaled(Triangular(50), 0.5)], milestones=[200])"),
    "Plateau": (40, "Plateau(factor=0.5, patience=5)"),
    "LambdaPolicy": (200, "LambdaPolicy(wave)"),
}


def wave(step: int) -> float:
    """The function of the example of LambdaPolicy."""
    return 0.6 + 0.4 * math.cos(step / 15)


class Reported(Policy):
    """A policy that listens to a metric, with the values that it has as a metric falls, and from step 12 on no more."""

    def __init__(self, policy: Policy) -> None:
        self.values, state = [], policy.initial_state()
        for step in range(100):
            assert state is not None
            self.values.append(policy.after(state, step))
            state = policy.report(state, max(1 - step / 20, 0.4))

    def at(self, step: int) -> Values:
        return self.values[step]


def policies() -> str:
    """A section for each policy: its curve, how it is written, what it computes and where it comes from."""
    return "\n\n".join(f"### {name}\n\n" + _policy(name) for name in POLICIES)


def _policy(name: str) -> str:
    steps, code = EXAMPLES[name]
    policy = eval(code, {**POLICIES, "wave": wave})
    shown: Policy = Reported(policy) if policy.initial_state() else policy
    docstring = inspect.getdoc(POLICIES[name]) or ""
    about = docstring.split("\nArgs:")[0]
    summary = as_markdown(about.split("\n\n")[0])
    formulas = "\n".join(block for block in _literal(about) if re.search(r"lr_factor|at\(step\)", block))
    (source,) = re.findall(r"^(Source: .*(?:\n\S.*)*)", docstring, re.MULTILINE)
    parts = [summary, curve(shown, steps, name), f"```python\n{code}\n```"]
    if formulas:
        parts.append(f"```text\n{formulas}\n```")
    parts.append(f"{as_markdown(source)} [In the API reference](api.md#cyclic_optim.{name}).")
    return "\n\n".join(parts)


def _literal(text: str) -> list[str]:
    """The indented blocks of a docstring."""
    return [inspect.cleandoc("\n" + block) for block in re.findall(r"(?:^ {4}.*\n?|^\n(?= {4}))+", text, re.MULTILINE)]


def as_markdown(text: str) -> str:
    """A docstring's text with names instead of roles."""
    return " ".join(re.sub(r":\w+:`([^`]*)`", r"`\1`", text).split())


def curve(policy: Policy, steps: int, name: str) -> str:
    """The policy's picture."""
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(6.4, 2.3), layout="constrained")
        ax = figure.subplots()
        plot_policy(policy, steps, ax=ax)
        ax.set_title("")
        ax.set_ylabel("factor of the peak")
        return figures.svg(figure, html.escape(f"{name}: its values over {steps} steps"))


def recipes() -> str:
    """A section for each recipe."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "tests" / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n\n".join(f"### {name}\n\n" + _recipe(name, recipe) for name, recipe in module.RECIPES.items())


def _recipe(name: str, recipe: Any) -> str:
    parts = [curve(recipe.policy, recipe.start + recipe.steps, name)]
    parts += [f"```python\n{brief(recipe.policy, width=10**4)}\n```", f"Source: {recipe.source}."]
    if recipe.start:
        parts.append(f'The run begins at step {recipe.start}: `"schedule_step": {recipe.start}` in its param group.')
    return "\n\n".join(parts)
