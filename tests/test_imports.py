"""Which way imports go: the contracts in setup.cfg, and what they cannot express."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def imported_modules(source: str) -> set[str]:
    """Every name that the source imports, absolute, `from a import b` as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return names


def test_the_contracts_in_setup_cfg_are_kept(capsys):
    failed = lint_imports(config_filename=str(ROOT / "setup.cfg"), no_cache=True, no_logo=True)
    assert not failed, capsys.readouterr().out


def test_recsys_never_imports_ray_serve():
    """import-linter knows other people's packages by their first name only, and ray.train may be wanted one day."""
    for path in sorted((ROOT / "recsys").rglob("*.py")):
        assert "ray.serve" not in imported_modules(path.read_text()), path.relative_to(ROOT)


@pytest.mark.parametrize("package", ["recsys.index", "recsys.evaluate"])
def test_searching_and_measuring_run_without_torch(package):
    """By running them: what a module imports while it is imported escapes a reading of its source."""
    program = (
        "import sys, pkgutil, importlib\n"
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_inside_serve_imports_are_relative():
    """A plain `import serve…` would rebind the name that `from ray import serve` gave."""
    for path in sorted((ROOT / "serve").rglob("*.py")):
        mine = {name for name in imported_modules(path.read_text()) if name.split(".")[0] == "serve"}
        assert not mine, f"{path.relative_to(ROOT)} imports {sorted(mine)}; write `from . import …`"
