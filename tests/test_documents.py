"""What the documents point at is there: files that they link, and modules, names and paths that they tell of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENTS = sorted([*Path().glob("*.md"), *(path for path in Path().glob("*/*.md") if path.parts[0][0] != ".")])
PLACEHOLDERS = {"benchmarks.NAME"}  # of commands that go by any name


def linked(document: Path) -> Iterator[tuple[Path, str]]:
    """The files of relative links, and the heading in each, or nothing."""
    for said in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in said and not said.startswith("mailto:"):
            path, _, heading = said.partition("#")
            yield (document.parent / path if path else document), heading


def code_of(document: Path) -> str:
    """What stands in code, be it in a line or in lines of its own."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", document.read_text(encoding="utf-8"), re.DOTALL))


def headings(document: Path) -> set[str]:
    """The headings as a link names them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or is bound at the top of one."""
    path, *rest = map(Path, name.split("."))
    while rest and (path / rest[0]).is_dir():
        path /= rest.pop(0)
    if rest and (path / rest[0]).with_suffix(".py").is_file():
        path = (path / rest.pop(0)).with_suffix(".py")
    elif path.is_dir():
        path /= "__init__.py"
    if not rest:
        return path.is_file()
    return str(rest[0]) in names_in(path) if path.is_file() else False


def names_in(module: Path) -> set[str]:
    """What a module binds at its top."""
    found: set[str] = set()
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(one.asname or one.name).partition(".")[0] for one in names}
            case ast.Assign() | ast.AnnAssign():
                found |= {one.id for one in ast.walk(statement) if isinstance(one, ast.Name)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_what_is_linked_exists(document: Path) -> None:
    for path, heading in linked(document):
        assert path.exists(), f"{document} links {path}"
        assert not heading or heading in headings(path), f"{document} links {heading!r} of {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_modules_and_paths_that_are_named_exist(document: Path) -> None:
    code = code_of(document)
    named = set(re.findall(r"(?<![\w./-])(?:recsys|serve|benchmarks)(?:\.[A-Za-z_]\w*)+", code)) - PLACEHOLDERS
    assert [name for name in sorted(named) if not exists(name)] == []
    paths = re.findall(
        r"(?<![\w./:-])(?:\.ci|recsys|serve|benchmarks|tests|docs|deploy|configs|notebooks)/[\w./*-]+", code
    )
    assert [path for path in paths if not any(Path().glob(path.rstrip("./")))] == []


def test_the_documents_are_many_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert {"README.md", "ARCHITECTURE.md", "docs/client.md", "benchmarks/README.md"} <= set(map(str, DOCUMENTS))
    for name in ("recsys.client", "recsys.client.Client", "recsys.ids.IdMap", "recsys.data.sql", "serve.swap.Current"):
        assert exists(name)
    for name in ("recsys.clint", "recsys.client.Clint", "recsys.ids.idmap", "serve.swap.Current2"):
        assert not exists(name)
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[one](gone.md#here) [two](https://x.org/y) [three](#a-b-c)\n```\nrecsys.x\n```\n`y`")
    assert list(linked(page)) == [(tmp_path / "gone.md", "here"), (page, "a-b-c")]
    assert headings(page) == {"a-b-c"}
    assert code_of(page) == "`b`\n```\nrecsys.x\n```\n`y`"
