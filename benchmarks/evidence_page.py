"""``docs/which_policy.md``: what to write, by what is known of a training, and what supports it.

Without the record of ``evidence.py`` the page has what papers report; with it, also what was measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from evidence import GRID, RANGE_TEST
from evidence_arms import COOLED, COSINE, LINEAR, ONE_CYCLE, RESTARTS, SGD_FREE, STEADY, TRIANGULAR, WEIGHT_DECAY, WSD
from evidence_report import Evidence, item, tally, wrapped

RECOMMENDED = 'WarmupStableDecay(total_steps, warmup=total_steps // 20, decay=total_steps // 5, shape="sqrt")'


class Row(NamedTuple):
    situation: str
    code: str
    papers: str
    measured: Callable[[Evidence], str] | None = None


def with_linear(subject: str, arm: str, rule: str) -> Callable[[Evidence], str]:
    """A sentence on an arm, compared with linear decay in all tasks and lengths."""

    def sentence(evidence: Evidence) -> str:
        return f"{subject}, compared with linear decay {rule}: {tally(evidence.differences(arm, rule))}."

    return sentence


def untuned(evidence: Evidence, arm: str = WSD) -> str:
    found = tally(evidence.differences(arm, RANGE_TEST, reference="constant"))
    return f"Measured, with nothing else tuned, compared with the best constant rate of a grid: {found}."


def by_length(evidence: Evidence) -> str:
    """How often the recommended policy is better, for each length of a training."""

    def count(budget: int) -> str:
        found = tally(evidence.with_default[task, RANGE_TEST, budget][WSD] for task in evidence.tasks)
        return f"after {budget} epochs {found}"

    lengths = "; ".join(map(count, evidence.budgets))
    return f"The recommended policy, compared with linear decay {RANGE_TEST}, by the length of the training: {lengths}."


def cooled(evidence: Evidence) -> str:
    ours, theirs = evidence.epochs_spent(COOLED), evidence.epochs_spent(LINEAR)
    lengths = len(evidence.budgets)
    text = with_linear("Measured", COOLED, RANGE_TEST)(evidence)
    return f"{text} {lengths} lengths took {ours:g} epochs instead of {theirs:g}."


ROWS = (
    Row(
        "You know how long you train",
        f"policy={RECOMMENDED}",
        "A constant rate with a cooldown matches cosine, and can be extended at any time before it "
        "([Hägele et al. 2024](https://arxiv.org/abs/2405.18392)).",
        with_linear("Measured", WSD, RANGE_TEST),
    ),
    Row(
        "You do not know it",
        "policy=Warmup(Constant(), 100)",
        "A constant rate needs no length. Keep checkpoints: any of them can be finished by the next row.",
        with_linear("Measured: `SGDScheduleFree`, which needs no length either", SGD_FREE, GRID),
    ),
    Row(
        "and now you want a finished model",
        'optimizer.reschedule(policy=WarmupStableDecay(n, warmup=0, decay=n, shape="sqrt"), step=0)',
        "`n` more steps, a fifth of the whole: a cooldown by 1 - sqrt matches cosine runs of that length "
        "([Hägele et al. 2024](https://arxiv.org/abs/2405.18392), section 3.2).",
        cooled,
    ),
    Row(
        "You want snapshots to average or to choose from",
        "policy=CosineRestarts(t_0=total_steps // 5)",
        "Keep the model before each restart ([Huang et al. 2017](https://arxiv.org/abs/1704.00109)).",
        with_linear("Measured: the last of three, each twice as long as the one before", RESTARTS, GRID),
    ),
    Row(
        "You fine-tune",
        "CyclicAdamW(params, lr=2e-5, policy=LinearDecay(total_steps, warmup=total_steps // 10))",
        "A low peak and a line to 0, as transformers' Trainer has it by default. Not measured here.",
    ),
    Row(
        "You have ten minutes",
        "CyclicSGD(params, momentum=0.9, **found.warmup_stable_decay(total_steps))",
        "`found` is the result of [lr_range_test](find_your_rate.md), which takes at most 100 steps.",
        untuned,
    ),
)

PAGE = """\
<!-- Written by benchmarks/evidence_page.py. -->
# Which policy?

By default, use `{recommended}`.
The rate rises for a twentieth of the training, stays at the peak, and falls to 0 in the last fifth. `total_steps`
counts optimizer steps: `len(loader) * epochs`. `lr` is the peak; the [range test](find_your_rate.md) finds it.

```python
from cyclic_optim import CyclicSGD, WarmupStableDecay

total_steps = len(loader) * epochs
warmup, decay = total_steps // 20, total_steps // 5
policy = WarmupStableDecay(total_steps, warmup, decay, shape="sqrt")
optimizer = CyclicSGD(model.parameters(), lr=0.1, momentum=0.9, policy=policy)
```

{table}

## What cycling brings, and what it does not

{bullets}

{source}

`benchmarks/speedrun.py` is a worked example of your own schedule: the triangle of the CIFAR-10 speedruns, compared with
SGD and OneCycleLR by the steps to a stated accuracy ([its record](../benchmarks/results/speedrun.md)).
"""

BRINGS = (
    "It brings models on the way: before each restart the rate is at its lowest, and the model one to keep.",
    "It is proven to be faster on quadratics whose spectrum has a gap, where steps that alternate beat any constant "
    "step and momentum (Goujaud et al. 2022; `tests/test_papers.py` reproduces it). Neural networks are no such "
    "quadratics.",
    "It does not find the peak for you, and it does not replace the decay at the end: a training that stops in the "
    "middle of a cycle stops at a high rate. Let it end where a cycle ends.",
)


def measured_bullets(evidence: Evidence) -> tuple[str, ...]:
    momentum = tally(evidence.pairs(ONE_CYCLE, STEADY, GRID))
    decay = tally(evidence.pairs(WEIGHT_DECAY, COSINE, GRID))
    return (
        by_length(evidence),
        "Linear decay matches or outperforms the usual schedules, cosine included, on ten problems of "
        f"[Defazio et al. 2023](https://arxiv.org/abs/2310.07831). {untuned(evidence, LINEAR)}",
        with_linear("Cosine", COSINE, GRID)(evidence),
        with_linear("Going up again, with `Triangular`", TRIANGULAR, GRID)(evidence),
        with_linear("One cycle, with `OneCycle`", ONE_CYCLE, GRID)(evidence),
        f"Cycling momentum, too: `OneCycle`, compared with itself at a constant momentum: {momentum}.",
        f"Cycling weight decay, too: cosine, compared with itself at a constant weight decay: {decay}.",
    )


def page(evidence: Evidence | None = None) -> str:
    bullets = BRINGS if evidence is None else BRINGS + measured_bullets(evidence)
    return PAGE.format(
        recommended=RECOMMENDED,
        table=table(evidence),
        bullets="\n".join(map(item, bullets)),
        source=source(evidence),
    )


def table(evidence: Evidence | None) -> str:
    """Without padding: its cells are long."""

    def support(row: Row) -> str:
        return row.papers if evidence is None or row.measured is None else f"{row.papers} {row.measured(evidence)}"

    rows = [[row.situation, f"`{row.code}`", support(row)] for row in ROWS]
    lines = [["your training", "write", "what supports it"], ["---"] * 3, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def source(evidence: Evidence | None) -> str:
    if evidence is None:
        return wrapped(
            "Other schedules are measured in the [README](../README.md#does-it-help). `benchmarks/evidence.py` "
            "compares these on five tasks."
        )
    return wrapped(
        f"Measured on {len(evidence.tasks)} tasks with {evidence.scope.seeds} seeds; a case is a task and a length of "
        'the training. "No difference found" means that the difference is inside the noise. All of it: '
        "[evidence.md](../benchmarks/results/evidence.md)."
    )
