"""The gates that no linter holds: sizes, parameters, globals, the environment, broad excepts, glossaries. Exits 1 on any breach."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FILE_LINES_FAIL = 500, 800
FUNCTION_LINES_P99, FUNCTION_LINES_FAIL = 60, 100
PARAMETERS, PARAMETERS_GATEWAY = 8, 6

# Named boundaries where a broad except is right; each logs or translates. Path → why.
BROAD_EXCEPT_ALLOWED: dict[str, str] = {
    "src/keybearer/jobs.py": "a failing job is logged once and tried again at its next turn",
    "src/keybearer/gateway/exchange.py": "one gateway request ends with a logged 503; its connection and the others go on",
    "src/keybearer/gateway/fetch.py": "likewise, one fetch",
    "src/keybearer/gateway/use.py": "likewise, where a use had to wait",
    "src/keybearer/store/changes.py": "the poll loop goes on; trust lapses meanwhile, the failure is logged once",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Check every Python file of the package; return the exit code."""
    breaches: list[str] = []
    lengths: list[tuple[int, str]] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > FILE_LINES_FAIL:
            breaches.append(f"{name}: {lines} lines; over {FILE_LINES_FAIL} fails: which noun is missing?")
        elif lines > FILE_LINES:
            print(f"note: {name} has {lines} lines, over {FILE_LINES}")
        tree = ast.parse(text)
        breaches.extend(f"{name}:{problem}" for problem in _file_breaches(name, tree))
        if path.name == "__init__.py":
            breaches.extend(f"{name}: its docstring does not name ``{module}``" for module in _unnamed(path, tree))
        lengths.extend((function_lines(node), f"{name}:{node.lineno} {node.name}") for node in _functions(tree))
    breaches.extend(_length_breaches(lengths))
    breaches.extend(_name_breaches())
    for breach in breaches:
        print(f"error: {breach}")
    print(f"gates: {len(lengths)} functions, longest {max(lengths)[0] if lengths else 0} lines, {len(breaches)} breaches")
    return 1 if breaches else 0


def function_lines(node: Function) -> int:
    """Lines of a function without its docstring: explaining is not to be punished."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def _functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _name_breaches() -> Iterator[str]:
    """Pytest imports test files by their bare names: two of one name are an error, but only where both are collected.

    Decisions are referred to by number.
    """
    seen: dict[str, Path] = {}
    numbers = [path.name[:4] for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    yield from (
        f"docs/adr: two decisions have the number {number}" for number in sorted(set(numbers)) if numbers.count(number) > 1
    )
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.name in seen:
            yield f"{path.relative_to(ROOT)}: {seen[path.name].relative_to(ROOT)} has the same name"
        seen[path.name] = path


def _unnamed(path: Path, tree: ast.Module) -> list[str]:
    """The modules of a package that its docstring leaves out, where that is a list of them: it names some."""
    named = set(re.findall(r"``(\w+)``", ast.get_docstring(tree) or ""))
    modules = {each.stem for each in path.parent.glob("*.py") if not each.stem.startswith("__")}
    modules |= {each.parent.name for each in path.parent.glob("*/__init__.py")}
    return sorted(modules - named) if modules & named else []


def _length_breaches(lengths: list[tuple[int, str]]) -> Iterator[str]:
    for lines, where in lengths:
        if lines > FUNCTION_LINES_FAIL:
            yield f"{where}: {lines} lines; over {FUNCTION_LINES_FAIL} fails"
    ordered = sorted(lines for lines, _ in lengths)
    if ordered and ordered[int(len(ordered) * 0.99)] > FUNCTION_LINES_P99:
        yield f"the 99th percentile of function lengths is {ordered[int(len(ordered) * 0.99)]} lines, over {FUNCTION_LINES_P99}"


def _file_breaches(name: str, tree: ast.Module) -> Iterator[str]:
    limit = PARAMETERS_GATEWAY if "/gateway/" in name else PARAMETERS
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"
        elif isinstance(node, ast.Attribute) and _is_environment(node) and name != "src/keybearer/config.py":
            yield f"{node.lineno}: os.{node.attr} outside config.py"
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node) and name not in BROAD_EXCEPT_ALLOWED:
            yield f"{node.lineno}: broad except outside the named boundaries"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _parameters(node) > limit:
            yield f"{node.lineno}: {node.name} has {_parameters(node)} parameters, over {limit}"


def _is_environment(node: ast.Attribute) -> bool:
    return node.attr in {"environ", "getenv", "putenv"} and isinstance(node.value, ast.Name) and node.value.id == "os"


def _is_broad(node: ast.ExceptHandler) -> bool:
    return node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})


def _parameters(node: Function) -> int:
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    # FastAPI routes take what a request brings as parameters; typer commands take their options so.
    return len([name for name in names if name not in {"self", "cls"}]) if not node.decorator_list else 0


if __name__ == "__main__":
    sys.exit(main())
