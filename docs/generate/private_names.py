"""The table of torch's private names, from the comments of ``torch_private.py``."""

import ast
import re
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "cyclic_optim" / "torch_private.py"


def table() -> str:
    """A row for each name of the file: what it is there for, and what happens without it."""
    rows = ["| in `torch_private.py` | what it buys, and what happens without it |", "|---|---|"]
    rows += [f"| {', '.join(f'`{name}`' for name in names)} | {text} |" for names, text in documented()]
    return "\n".join(rows)


def documented() -> list[tuple[list[str], str]]:
    """The public names of the file with their texts: a comment in front of them, or a docstring."""
    text = FILE.read_text()
    lines, found = text.splitlines(), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            names, said = [node.name], ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names, said = [ast.unparse(target) for target in targets], ""
        else:
            continue
        if names[0].startswith("_"):
            continue
        said = _comment_above(lines, node.lineno - 1) or said
        if said:
            found.append((names, " ".join(re.sub(r"``", "`", said).split()).replace("|", "\\|")))
        else:
            found[-1][0].extend(names)  # under the comment of the name before it
    return found


def _comment_above(lines: list[str], line: int) -> str:
    comment: list[str] = []
    while lines[line - 1].startswith("#:"):
        line -= 1
        comment.insert(0, lines[line][2:])
    return " ".join(comment)
