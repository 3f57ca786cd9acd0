"""How every benchmark prints: one table that lines up, or the same rows as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any


def parser(description: str) -> argparse.ArgumentParser:
    """The argument parser of a benchmark, with `--json` in it."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    return made


def emit(title: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints rows (one dict each, same keys) under a title, with the machine they were measured on."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if as_json:
        print(json.dumps({"title": title, "machine": machine, "rows": rows}, indent=1))
        return
    columns = list(rows[0]) if rows else []
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    numeric = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]
    print(f"\n{title} ({machine})")
    for line in [columns, ["─" * width for width in widths], *cells]:
        aligned = (t.rjust(w) if n else t.ljust(w) for t, w, n in zip(line, widths, numeric, strict=True))
        print("  ".join(aligned).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
