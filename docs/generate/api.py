"""The page of the API: every public name, in the order of ``cyclic_optim.__all__`` and ``cyclic_optim.testing``'s."""

import cyclic_optim
import cyclic_optim.testing

#: The first name of each section.
SECTIONS = {
    "CyclicSGD": "Optimizers",
    "Policy": "Policies",
    "lr_range_test": "The range test",
    "plot_policy": "Pictures",
}


def reference() -> str:
    parts = []
    for name in cyclic_optim.__all__:
        if name in SECTIONS:
            parts.append(f"## {SECTIONS[name]}")
        parts.append(f"::: cyclic_optim.{name}")
    parts.append("## Property testing")
    parts += [f"::: cyclic_optim.testing.{name}" for name in cyclic_optim.testing.__all__]
    return "\n\n".join(parts)
