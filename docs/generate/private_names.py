"""The table of torch's private names, from ``torch_private.py`` and its comments."""

import ast
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).resolve().parents[2] / "cyclic_optim" / "torch_private.py"


class Entry(NamedTuple):
    """What is documented together: names of the file, torch's names that they stand for, and the text."""

    names: list[str]
    of_torch: list[str]
    text: str


def table() -> str:
    """A row for each name of the file: torch's names, what they buy, and what happens without them."""
    rows = ["| torch's name | in `torch_private.py` | what it buys, and what happens without it |", "|---|---|---|"]
    for names, of_torch, text in entries():
        rows.append(f"| {_code(of_torch)} | {_code(names)} | {' '.join(text.replace('``', '`').split())} |")
    return "\n".join(rows)


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def entries() -> list[Entry]:
    """The public names of the file with their texts: the comment in front of them, or the docstring.

    A name without a text belongs to the one before it. What a private name of the file stands for counts where that
    is used.
    """
    source, found = FILE.read_text(), []
    lines, nodes = source.splitlines(), ast.parse(source).body
    defined = {_name(node): node for node in nodes if isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign)}
    used = {name: [one for one in _private(node) if one != name] for name, node in defined.items()}
    for name, node in defined.items():
        if name.startswith("_"):
            continue
        of_torch = _resolved(name, used)
        docstring = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        text = _comment_above(lines, node.lineno - 1) or docstring
        if text:
            found.append(Entry([name], of_torch, text))
        else:
            found[-1].names.append(name)
            found[-1].of_torch.extend(of_torch)
    return [Entry(names, [*dict.fromkeys(of_torch)], text) for names, of_torch, text in found]


def _resolved(name: str, used: dict[str, list[str]]) -> list[str]:
    """The names of torch behind a name of the file."""
    return [each for one in used[name] for each in (_resolved(one, used) if one in used else [one])]


def _name(node: ast.FunctionDef | ast.Assign | ast.AnnAssign) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def _private(node: ast.AST) -> list[str]:
    """The private names that are used, with what they are read from; those in strings, too."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and _is_private(node.value) else []
    if isinstance(node, ast.Attribute | ast.Name):
        text = ast.unparse(node)
        if all(part.isidentifier() for part in text.split(".")):
            return [text] if any(map(_is_private, text.split("."))) else []
    return [name for child in ast.iter_child_nodes(node) for name in _private(child)]


def _is_private(name: str) -> bool:
    return name.isidentifier() and name.startswith("_") and not name.startswith("__")


def _comment_above(lines: list[str], line: int) -> str:
    comment: list[str] = []
    while lines[line - 1].startswith("#:"):
        line -= 1
        comment.insert(0, lines[line][2:])
    return " ".join(comment)
