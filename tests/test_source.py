"""The shape of the one file: its map, its order, what is pure, what it needs."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

from conftest import PROGRAM, ROOT

from citrixagent import PACKAGES

SOURCE = PROGRAM.read_text()
BANNERS = re.findall(r"^# ----- (\d+\. .+?) -+$", SOURCE, re.MULTILINE)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@functools.cache
def tree() -> ast.Module:
    return ast.parse(SOURCE)


def line_of(banner: str) -> int:
    return next(n for n, line in enumerate(SOURCE.splitlines(), 1) if f"- {banner} -" in line)


def names_in(node: ast.AST) -> Iterator[ast.Name]:
    """Yield the names that are looked up when code runs: annotations are not."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name):
                yield child
            elif isinstance(child, ast.AST):
                yield from names_in(child)


def test_an_old_python_gets_as_far_as_to_the_sentence_that_says_so() -> None:
    ast.parse(SOURCE, feature_version=(3, 8))


def test_the_map_in_the_docstring_is_the_banners() -> None:
    """A reader finds each thing where the map says."""
    docstring = ast.get_docstring(tree()) or ""
    mapped = re.findall(r"^(\d+\. [A-Z][\w ]*?)(?:  +|$)", docstring, re.MULTILINE)
    assert mapped == BANNERS
    assert [banner.split(".")[0] for banner in BANNERS] == [
        str(n) for n in range(1, len(BANNERS) + 1)
    ]


def test_a_name_is_defined_before_it_is_used() -> None:
    """The file reads as a book: no definition refers to one further down."""
    defined: dict[str, int] = {}
    for node in tree().body:
        if isinstance(node, Definition):
            defined[node.name] = node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {t.id: node.lineno for t in targets if isinstance(t, ast.Name)}
    forward = [
        f"{name.id} in line {name.lineno}"
        for node in tree().body
        for name in names_in(node)
        if defined.get(name.id, 0) > (node.end_lineno or 0)
    ]
    assert forward == []


def test_the_upper_half_is_pure() -> None:
    """All that decides: no network, no clock, no file, no process."""
    begin, end = line_of("1. Errors"), line_of("8. HTTP")
    impure = {"os", "pathlib", "socket", "ssl", "subprocess", "time", "threading", "requests"}
    impure |= {"open", "signal", "sys", "random", "getpass", "fcntl", "utc_now", "logging"}
    used = {
        name.id
        for node in tree().body
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.If) and begin < node.lineno < end
        for name in names_in(node)
    } & impure
    assert used <= {"logging"}  # the one logger is made at the top
    upper = "\n".join(SOURCE.splitlines()[:end])
    assert ".now(" not in upper
    assert ".today(" not in upper


def test_no_global_no_print_no_nested_function() -> None:
    nodes = list(ast.walk(tree()))
    assert not [node for node in nodes if isinstance(node, ast.Global | ast.Nonlocal)]
    assert not re.search(r"^\s*print\(", SOURCE, re.MULTILINE)
    nested = [
        inner.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.FunctionDef) and inner is not node
    ]
    assert nested == []


def test_no_function_is_longer_than_a_screen() -> None:
    functions = [node for node in ast.walk(tree()) if isinstance(node, ast.FunctionDef)]
    tables = {"_start", "_go_on"}  # README's tables, row by row
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    long = {name for name, length in lengths.items() if length > 60}
    assert long <= tables


def test_no_class_is_more_than_one_thing() -> None:
    """NetScaler has a method for each remote call."""
    classes = [node for node in ast.walk(tree()) if isinstance(node, ast.ClassDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in classes}
    assert {name for name, length in lengths.items() if length > 350} <= {"NetScaler"}


def test_the_script_metadata_is_the_requirements() -> None:
    """``uv run``, ``pip install -r`` and ``check`` want the same packages."""
    block = re.search(r"^# /// script\n(.*?)^# ///$", SOURCE, re.DOTALL | re.MULTILINE)
    assert block
    assert 'requires-python = ">=3.10"' in block[1]
    assert re.findall(r'"([^">]+>=[\d.]+)"', block[1].split("dependencies")[1]) == (
        (ROOT / "requirements.txt").read_text().split()
    )
    checked = [f"{name}>={'.'.join(map(str, oldest))}" for name, oldest in PACKAGES.items()]
    assert checked == (ROOT / "requirements.txt").read_text().split()


def test_the_top_level_is_what_users_expect() -> None:
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    run_time = {"profiles", "appliances", "state", "__pycache__"}
    assert visible - run_time == {
        "citrixagent.py",
        "example_cert_config.yaml",
        "scm.yaml",
        "requirements.txt",
        "README.md",
        "LICENSE.txt",
        "tests",
    }
