"""The command `recsys`: every stage of the way from a log to live recommendations."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from recsys.artifacts import ArtifactError

HELP = """usage: recsys COMMAND [options]

Data      prepare     raw tables (CSV, Parquet, SQL, MovieLens) to a dataset
Training  fit         train the two towers; Lightning CLI, as are the next three
          validate    the validation metric of a checkpoint
          test        the same on the test part
          predict     every user's top k, to Parquet
          evaluate    full report of a checkpoint beside the baselines
          tune        search a configuration's space on the validation part
          adapt       tune a sentence encoder to what is taken together
Bundles   bundle      seal | list | show | diff | compare | align | log | verify | promote | rollback | prune
          index       advise: which index these vectors want
          doctor      look into a bundle: duplicates, clusters, outliers, collapse, drift, leaks
Nightly   nightly     from yesterday's log to a promoted bundle, or a verdict that says why not
Service   serve       answer over HTTP from the live bundle

examples:
  recsys prepare --config configs/ml-1m-prepare.yaml
  recsys fit --config configs/ml-1m.yaml
  recsys fit --config configs/ml-1m.yaml --ckpt_path last           # go on where it stopped
  recsys tune --config configs/tune.yaml
  recsys evaluate --checkpoint demo/run/best.ckpt --dataset demo/dataset --out demo/evaluation.json
  recsys bundle seal --checkpoint demo/run/best.ckpt --dataset demo/dataset --registry demo/registry --promote
  recsys doctor --registry demo/registry --html demo/doctor.html
  recsys nightly --config configs/nightly.yaml
  recsys serve --registry demo/registry

`recsys COMMAND --help` says more.
"""


PREPARE_EXAMPLES = """examples:
  recsys prepare --config configs/csv-prepare.yaml
  recsys prepare --tables MovieLens --tables.path ml-1m --out demo/dataset
  recsys prepare --config configs/csv-prepare.yaml --max_rejected 0.05 --out shop/dataset-2
"""
EVALUATE_EXAMPLES = """examples:
  recsys evaluate --checkpoint demo/run/best.ckpt --dataset demo/dataset --out demo/evaluation.json
  recsys evaluate --checkpoint demo/run/best.ckpt --dataset demo/dataset --max_queries 20000 --dimensions '[32, 16]'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for what the command refused, 2 for what it was told wrong.

    `nightly` has two more: 3 for a candidate that a gate refused, 4 if another job runs on the registry.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    command, rest = given[0], given[1:]
    commands: dict[str, Callable[[list[str]], None]] = {
        "prepare": _prepare,
        "evaluate": _evaluate,
        "bundle": _bundle,
        "index": _index,
        "tune": _tune,
        "adapt": _adapt,
        "serve": _serve,
    }
    try:
        if command == "nightly":
            from recsys.nightly.command import main as nightly

            return nightly(rest)
        if command == "doctor":
            from recsys.explore.command import main as doctor

            return doctor(rest)
        if command in ("fit", "validate", "test", "predict"):
            from recsys.train import run  # Lightning takes seconds to import, so only who needs it waits

            run(given)
        elif command in commands:
            commands[command](rest)
        else:
            print(f"recsys: there is no command {command!r}\n\n{HELP}", end="", file=sys.stderr)
            return 2
    except _refusals() as error:
        print(f"recsys {command}: {error}", file=sys.stderr)
        return 1
    return 0


def _refusals() -> tuple[type[Exception], ...]:
    """What a stage raises when it refuses its input: people see the message, not the traceback."""
    from recsys.data.prepare import PrepareError
    from recsys.data.schema import SchemaError
    from recsys.data.sources import SourceError

    return ArtifactError, PrepareError, SchemaError, SourceError, ValueError


def _prepare(arguments: list[str]) -> None:
    # MovieLens and Synthetic are tables that the option can then name without their modules.
    from recsys.data import movielens, synthetic  # noqa: F401
    from recsys.data.prepare import prepare
    from recsys.options import parser_of

    parser = parser_of("prepare", "Turn raw tables into a dataset.", PREPARE_EXAMPLES)
    parser.add_function_arguments(prepare)
    said = parser.instantiate(parser.parse_args(arguments))
    prepare(said.tables, said.out, max_rejected=said.max_rejected, base=said.base)


def _evaluate(arguments: list[str]) -> None:
    from recsys.evaluation import evaluate_checkpoint, evaluation_of
    from recsys.options import parser_of

    parser = parser_of("evaluate", "Measure a checkpoint beside the baselines.", EVALUATE_EXAMPLES)
    parser.add_function_arguments(evaluate_checkpoint, skip={"progress"})
    parser.add_argument("--out", type=Path | None, default=None, help="where to write the figures, as JSON")
    said = parser.parse_args(arguments)
    results = evaluate_checkpoint(
        said.checkpoint,
        said.dataset,
        part=said.part,
        baselines=said.baselines,
        dimensions=said.dimensions,
        max_queries=said.max_queries,
        progress=sys.stderr.isatty(),
    )
    from recsys.evaluate.report import table

    print(table(results))
    if said.out:
        said.out.parent.mkdir(parents=True, exist_ok=True)
        said.out.write_text(json.dumps(evaluation_of(said.checkpoint, results), indent=1), encoding="utf-8")


def _bundle(arguments: list[str]) -> None:
    from recsys.bundles import main

    main(arguments)


def _index(arguments: list[str]) -> None:
    from recsys.indexes import main

    main(arguments)


def _tune(arguments: list[str]) -> None:
    from recsys.tune.command import main

    main(arguments)


def _adapt(arguments: list[str]) -> None:
    from recsys.adapt.command import main

    main(arguments)


def _serve(arguments: list[str]) -> None:
    # A process of its own: Ray must find its environment set before it is imported, and nothing here imports `serve`.
    os.execv(sys.executable, [sys.executable, "-m", "serve", *arguments])


if __name__ == "__main__":
    sys.exit(main())
