"""Every benchmark that needs no argument, one after another; but ``evidence.py``, which takes an hour by itself.

Run it with::

    pip install '.[bench]'
    python benchmarks/run_all.py            # half an hour; let nothing else run meanwhile
    python benchmarks/run_all.py --quick    # some minutes

Each runs in a process of its own and writes to ``build/benchmarks``, or where ``--out`` says. One that fails is
named at the end, the others run all the same; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = (
    "crossing.py",
    "step_cost.py",
    "schedule_cost.py",
    "training_step.py",
    "soak.py",
    "digits.py",
    "suggestions.py",
    "low_good_high.py",
    "letters.py",
    "speedrun.py",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each benchmark's own --quick")
    parser.add_argument("--out", type=Path, help="where to write (default: build/benchmarks)")
    options = parser.parse_args()
    passed_on = ["--quick"] if options.quick else []
    passed_on += ["--out", str(options.out)] if options.out else []
    failed = [name for name in BENCHMARKS if (HERE / name).exists() and not succeeds(name, passed_on)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def succeeds(name: str, arguments: list[str]) -> bool:
    print(f"\n{name}", flush=True)
    return subprocess.run([sys.executable, HERE / name, *arguments]).returncode == 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
