"""`recsys tune` for people and scripts: a line a trial, then a table of the best, or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from recsys.options import parser_of
from recsys.tune.search import BEST, Found, check, search
from recsys.tune.settings import Settings
from recsys.tune.space import Choices

_SHOWN, _WIDEST = 10, 40  # rows, and characters of a value
_EXAMPLES = """examples:
  recsys tune --config configs/tune.yaml
  recsys tune --config configs/tune.yaml --trials 100 --hours 8     # goes on with what is there
  recsys tune --config configs/tune.yaml --json > tuned.json

Stop it as you like: the same command goes on. Its best is in best.yaml below `out`, for `recsys fit`.
"""


def main(arguments: list[str]) -> None:
    """Runs the search.

    Raises:
        ArtifactError: as `search`.
        ValueError: what is asked for cannot be.
    """
    settings, as_json = _settings(arguments)
    check(settings)
    try:
        found = search(settings, lambda line: print(line, file=sys.stderr, flush=True))
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        print("recsys tune: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    if as_json:
        print(json.dumps(_figures(found, settings), indent=1, ensure_ascii=False))
        return
    print(table(found))
    if found.importance:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in found.importance.items())
        print(f"\nWhat made good trials good: {shares}")
    print(f"\n{len(found.trials)} trials: {found.counts()}. recsys fit --config {settings.out / BEST}")


def table(found: Found) -> str:
    """The best trials as aligned text, the best first."""
    shown = found.ranking[:_SHOWN]
    keys = list(shown[0].parameters)
    rows = [["trial", found.metric, "epochs", "seconds", *keys]]
    for trial in shown:
        values = [_short(trial.parameters[key]) for key in keys]
        rows.append([str(trial.number), f"{trial.value:.4f}", str(trial.epochs), f"{trial.seconds:.0f}", *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["─" * width for width in widths])
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _short(value: Any) -> str:
    """A parameter's value, as far as a column holds it; best.yaml and JSON have it whole."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and "class_path" in value:
        given = ", ".join(f"{key}={one}" for key, one in value.get("init_args", {}).items())
        said = f"{value['class_path'].rpartition('.')[2]}({given})"
    else:
        said = value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= _WIDEST else f"{said[: _WIDEST - 1]}…"


def _settings(arguments: list[str]) -> tuple[Settings, bool]:
    """What is asked for, and whether the answer shall be JSON."""
    parser = parser_of("tune", "Search a configuration's space on the validation part.", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_class_arguments(Settings, as_group=False)
    said = parser.parse_args(arguments)
    plain = json.loads(parser.dump(said, format="json", skip_unset=False))
    made = vars(parser.instantiate(said))
    made.pop("config")
    as_json = made.pop("json")
    # The parser builds every class that it sees named; those in here are the Lightning CLI's to build.
    made["fit"] = plain["fit"]
    made["space"] = {
        key: dataclasses.replace(given, values=plain["space"][key]["values"]) if isinstance(given, Choices) else given
        for key, given in made["space"].items()
    }
    return Settings(**made), as_json


def _figures(found: Found, settings: Settings) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "best": dataclasses.asdict(found.ranking[0]),
        "configuration": str(settings.out / BEST),
        "importance": found.importance,
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
    }
