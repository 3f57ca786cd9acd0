"""`recsys nightly`: the job for people and schedulers, who get a status and a last line of JSON whatever comes."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from typing import Any

from recsys.artifacts import NO_ROOM, ArtifactError
from recsys.cluster.place import ClusterError

# MovieLens and Synthetic are tables that the configuration can then name without their modules.
from recsys.data import movielens, synthetic  # noqa: F401
from recsys.data.schema import SchemaError
from recsys.data.sources import SourceError
from recsys.lock import LockedError
from recsys.nightly import engine
from recsys.nightly.job import run
from recsys.nightly.settings import Settings
from recsys.options import parser_of

STATUS = {"promoted": 0, "nothing new": 0, "failed": 1, "told wrong": 2, "refused": 3, "locked": 4}
_FORESEEN = (ArtifactError, ClusterError, SchemaError, SourceError, ValueError, OSError)
_EXAMPLES = """examples:
  recsys nightly --config configs/nightly.yaml
  recsys nightly --config configs/nightly.yaml --gates.tolerance 0.1
  recsys nightly --config configs/nightly.yaml --warm_start null             # trains in full, this once

A rerun after a crash goes on at the step that broke. The last line is JSON: outcome, night, bundle, live, failed gates,
report. Exit status: 0 promoted, or nothing new; 1 a step failed; 2 told wrong; 3 refused by a gate; 4 another job runs.
"""


def main(arguments: list[str]) -> int:
    """Runs the job; returns the exit status of its outcome, as `STATUS` says."""
    began = time.monotonic()
    try:
        settings, configuration = _settings(arguments)
        engine.check(settings)
    except SystemExit as error:
        if not error.code:  # help was asked for
            raise
        return _ended({"outcome": "told wrong"})
    except (ArtifactError, SchemaError, ValueError) as error:
        return _ended({"outcome": "told wrong", "why": str(error)})
    try:
        return _ended(run(settings, configuration))
    except LockedError as error:
        return _ended({"outcome": "locked", "why": str(error)})
    except Exception as raised:
        reason = _full_disk(raised) or raised
        if not isinstance(reason, _FORESEEN):
            traceback.print_exc()
        took = round(time.monotonic() - began, 1)
        return _ended({"outcome": "failed", "why": str(reason) or type(reason).__name__, "seconds": took})


def _settings(arguments: list[str]) -> tuple[Settings, str]:
    """What is asked for, and the same as text."""
    parser = parser_of("nightly", "From yesterday's log to a promoted bundle.", _EXAMPLES)
    parser.add_class_arguments(Settings, as_group=False)
    said = parser.parse_args(arguments)
    configuration = parser.dump(said, format="json", skip_unset=False)
    made = vars(parser.instantiate(said))
    made.pop("config")
    # The parser builds every class that it sees named; those in `fit` are the Lightning CLI's to build.
    plain = json.loads(configuration)
    made["fit"] = plain["fit"]
    if made["warm_start"] is not None:
        made["warm_start"] = dataclasses.replace(made["warm_start"], fit=plain["warm_start"]["fit"])
    return Settings(**made), configuration


def _full_disk(error: BaseException | None) -> OSError | None:
    """What a full disk said, where a library said something else on top of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def _ended(result: dict[str, Any]) -> int:
    if "why" in result:
        print(f"recsys nightly: {result['why']}", file=sys.stderr)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return STATUS[result["outcome"]]
