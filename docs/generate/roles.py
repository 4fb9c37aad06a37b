"""Sphinx's roles in docstrings as links of the API reference: ``:class:`OneCycle```, ``:meth:`report```."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

import cyclic_optim

_ROLE = re.compile(r":\w+:`(?P<name>[\w.]+)`")


class Roles(griffe.Extension):
    """An extension of griffe, which reads the docstrings."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        places = {name: f"cyclic_optim.{name}" for name in cyclic_optim.__all__}
        methods = {}
        for name, public in ((name, pkg[name]) for name in cyclic_optim.__all__):
            if public.is_class:
                members = [member for member in public.members if not member.startswith("_")]
                places |= {f"{name}.{member}": f"cyclic_optim.{name}.{member}" for member in members}
                methods |= {member: f"cyclic_optim.{name}.{member}" for member in members if member not in methods}
        for each in documented(pkg):
            own = f"{each.path.rpartition('.')[0]}."

            def linked(role: re.Match[str], own: str = own, each: griffe.Object = each) -> str:
                name = role["name"].removeprefix("cyclic_optim.")
                holder = each if each.is_class else each.parent
                if holder is not None and holder.is_class and name in holder.members:
                    return f"[`{name}`][{holder.path}.{name}]"
                place = places.get(name) or methods.get(name)
                return f"[`{name}`][{place}]" if place else f"`{name}`"

            assert each.docstring is not None
            text = _ROLE.sub(linked, each.docstring.value)
            # The section that griffe knows as one of code.
            each.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def documented(each: griffe.Object) -> Iterator[griffe.Object]:
    """An object and all that it defines, as far as they have docstrings."""
    if each.docstring:
        yield each
    for member in each.members.values():
        if not member.is_alias:
            yield from documented(member)
