"""The notebooks run from top to bottom, on the toy's way, and are kept without their outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.toy import Toy

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def environment(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_REGISTRY", str(toy.registry))
    monkeypatch.setenv("RECSYS_DATASET", str(toy.dataset))
    monkeypatch.setenv("RECSYS_EPOCHS", "2")
    monkeypatch.delenv("RECSYS_URL", raising=False)  # the sixth starts a service of its own
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as for all toys; see conftest
        monkeypatch.setenv(threads, "1")


def test_there_are_six() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": path.parent}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type == "execute_result" for output in shown)
    assert not any("Traceback" in output.get("text", "") for output in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_what_it_needs(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0].source
    assert "Run `make demo EXIT=1` first, or set `RECSYS_" in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
