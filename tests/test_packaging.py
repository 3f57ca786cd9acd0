"""What setup.cfg, constraints.txt and the Makefile declare, against what the code and the documents use."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Declared, and yet imported nowhere: who needs it.
NEEDED_UNSEEN = {
    "tensorboard": "Lightning's TensorBoardLogger",
}
# Commands of `dev`, not libraries.
TOOLS = {"mypy", "pre-commit", "pytest-timeout", "ruff"}
# FAISS for cuVS wants a newer CUDA than the pinned torch brings; setup.cfg says so.
UNPINNED_EXTRAS = {"gpu-cuvs"}


@pytest.fixture(scope="module")
def declared() -> dict[str, list[Requirement]]:
    """Requirements an extra; those that everyone gets under "". References to our own extras are left out."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    parsed = {extra: [Requirement(line) for line in text.split("\n") if line] for extra, text in texts.items()}
    return {extra: [each for each in listed if each.name != "recsys"] for extra, listed in parsed.items()}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(each.name) for each in requirements}


def third_party(*folders: str) -> dict[str, str]:
    """First part of every import that is neither Python's nor ours → a file that has it."""
    ours = {"recsys", "serve", "benchmarks", "tests"}
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    modules = [node.module]
                for module in modules:
                    first = module.split(".")[0]
                    if first not in ours and first not in sys.stdlib_module_names:
                        found[first] = str(path.relative_to(ROOT))
    return found


MODULES = metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    return {canonicalize_name(name) for name in MODULES.get(module, [])}


def test_every_import_of_the_code_is_declared(declared):
    allowed = set().union(*(names(listed) for extra, listed in declared.items() if extra not in ("dev", "notebooks")))
    for module, path in third_party("recsys", "serve").items():
        assert distributions(module) & allowed, f"{path} imports {module}; declare it in setup.cfg"


def test_every_import_of_the_tests_is_declared(declared):
    allowed = set().union(*map(names, declared.values()))
    for module, path in third_party("tests").items():
        local = (ROOT / path).parent / f"{module}.py"
        assert local.exists() or distributions(module) & allowed, f"{path} imports {module}; declare it in setup.cfg"


def test_nothing_is_declared_in_vain(declared):
    used = set().union(*(distributions(module) for module in third_party("recsys", "serve")))
    needless = names(declared[""]) - used - set(NEEDED_UNSEEN)
    assert not needless, f"setup.cfg asks for {sorted(needless)}, which neither recsys nor serve imports"
    used |= set().union(*(distributions(module) for module in third_party("tests", "benchmarks")))
    needless = names(declared["dev"]) - used - TOOLS
    assert not needless, f"setup.cfg's dev asks for {sorted(needless)}, which no test imports"


def test_every_requirement_has_a_lower_bound(declared):
    for extra, listed in declared.items():
        for each in listed:
            assert any(bound.operator in (">=", "==") for bound in each.specifier), (
                f"[{extra}] {each} has no lower bound"
            )


def test_faiss_is_an_extra_and_one_flavour_each(declared):
    flavours = {
        extra: [each for each in names(listed) if each.startswith("faiss")] for extra, listed in declared.items()
    }
    assert {extra: found for extra, found in flavours.items() if found} == {
        "cpu": ["faiss-cpu"],
        "gpu": ["faiss-gpu"],
        "gpu-cuvs": ["faiss-gpu-cuvs"],
    }


def test_lightning_comes_under_one_name_only(declared, pins):
    assert "lightning" not in pins
    assert all("lightning" not in names(listed) for listed in declared.values())


def test_constraints_are_bare_versions():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"(#.*|[a-z0-9-]+==[0-9][0-9a-z.]*)?", line), line


def test_constraints_fit_what_is_declared(declared, pins):
    for extra in declared.keys() - UNPINNED_EXTRAS:
        for each in declared[extra]:
            pinned = pins.get(canonicalize_name(each.name))
            assert pinned, f"{each} of [{extra}] is not in constraints.txt; run make constraints"
            assert each.specifier.contains(pinned), f"constraints.txt has {each.name} {pinned}, not {each.specifier}"


def test_constraints_hold_what_the_declared_need(declared, pins):
    """Whatever a declared package brings along here is pinned, too."""
    todo = [each for extra in declared.keys() - UNPINNED_EXTRAS for each in declared[extra]]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        assert canonicalize_name(requirement.name) in pins, f"{requirement.name} is not in constraints.txt"
        try:
            installed = metadata.version(requirement.name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue  # the FAISS of the other kind of machine
        if installed != pins[canonicalize_name(requirement.name)]:
            continue  # another version may need other things
        needs = metadata.requires(requirement.name) or []
        for each in map(Requirement, needs):
            extras = requirement.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(each)


def test_the_documents_name_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)), "make help leaves one out"
    for document in [*ROOT.glob("*.md"), ROOT / ".ci" / "run"]:
        named = re.findall(r"(?:`|^ *|\" )make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, f"{document.name} names {sorted(set(named) - targets)}, not in the Makefile"


def test_the_typed_marker_and_the_licence_are_there():
    assert (ROOT / "recsys" / "py.typed").exists()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
