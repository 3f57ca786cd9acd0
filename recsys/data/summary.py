"""What `prepare` counted, for people."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from recsys.data.dataset import Dataset


def summary(dataset: Dataset) -> str:
    """What `prepare` counted, as a small table; with a base, what is new beside the whole."""
    said = dataset.manifest.content
    counts, added = said["counts"], said["added"]
    lines: list[tuple[str, Any, Any]] = [
        (f"  {name.replace('_', ' ')}", counts[name], added.get(name))
        for name in counts
        if isinstance(counts[name], int)
    ]
    rejected = Counter(added["rejected"])
    for table in added["tables"].values():
        rejected.update(table["rejected"])
    for group, new in (("rejected", rejected), ("values_not_read", counts["values_not_read"])):
        lines.append((f"  {group.replace('_', ' ')}", sum(counts[group].values()), sum(new.values())))
        lines += [(f"    {reason}", number, new.get(reason, 0)) for reason, number in counts[group].items()]
    if said["time_range"]:
        moments = zip(said["time_range"], added["time_range"] or (None, None), strict=True)
        lines += [
            (name, _moment(of_all), _moment(of_new))
            for name, (of_all, of_new) in zip(("  from", "  to"), moments, strict=True)
        ]
    texts = [[f"{value:,}" if isinstance(value, int) else value or "" for value in line] for line in lines]
    if said["base"]:
        texts.insert(0, ["", "in all", "new"])
    else:
        texts = [line[:2] for line in texts]
    widths = [max(len(line[column]) for line in texts) for column in range(len(texts[0]))]
    rows = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in texts]
    return "\n".join([str(dataset.path), *("  ".join(row).rstrip() for row in rows)])


def _moment(millis: int | None) -> str:
    if millis is None:
        return ""
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(" ", "seconds")[:19]
