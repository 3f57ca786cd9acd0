"""Turns pip's installation reports into constraints.txt: one environment's exact versions, for CPU and GPU alike.

    python .ci/constraints.py REPORT… > constraints.txt

`make constraints` makes the reports (`pip install --dry-run --report`) and calls this.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HEADER = """\
# Exact versions of everything that an extra can bring in, for `pip install --constraint constraints.txt`.
# Written by `make constraints`; change setup.cfg and run that rather than edit this.
# A constraint installs nothing by itself: both FAISS flavours and CUDA's libraries stand here, and an extra chooses.
"""


def pins(reports: list[dict]) -> dict[str, str]:
    """Name → version over all reports, names normalised (PEP 503) and local versions (`+cpu`) cut off.

    Raises:
        ValueError: two reports disagree about a version.
    """
    pinned: dict[str, str] = {}
    for report in reports:
        for package in report["install"]:
            name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
            version = package["metadata"]["version"].split("+")[0]
            if pinned.setdefault(name, version) != version:
                raise ValueError(f"{name} is {pinned[name]} in one report and {version} in another")
    del pinned["recsys"]
    return pinned


if __name__ == "__main__":
    pinned = pins([json.loads(Path(path).read_text()) for path in sys.argv[1:]])
    print(HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(pinned.items())))
