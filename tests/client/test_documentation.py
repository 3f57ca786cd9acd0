"""What docs/client.md shows runs as it stands there, against a service at the address that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.client.faulty import faulty, says
from tests.client.toys import ANSWER

PAGE = Path("docs/client.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("code", SHOWN)
def test_what_the_page_shows_runs(code: str) -> None:
    with faulty(says({**ANSWER, "accepted": 1, "duplicates": 0})) as server:
        said: dict[str, Any] = {}
        exec(code.replace("http://127.0.0.1:8000", server.address), said)  # noqa: S102 -- our own page
        assert server.asked
        if "recommend" in said:
            said["recommend"].close()


def test_the_page_names_every_method() -> None:
    from recsys.client import AsyncClient, Client

    for kind in (Client, AsyncClient):
        methods = {name for name in vars(kind) if not name.startswith("_")} - {"close"}
        assert methods == set(re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE))
