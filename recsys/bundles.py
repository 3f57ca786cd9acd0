"""`recsys bundle`: seal a checkpoint, look at what a registry holds, and say which bundle is live."""

from __future__ import annotations

import argparse
import getpass
import json
from pathlib import Path
from typing import Any

from recsys.artifacts import ArtifactError, Manifest
from recsys.registry import Registry
from recsys.seal import seal

EXAMPLES = """examples:
  recsys bundle seal --checkpoint demo/run/best.ckpt --dataset demo/dataset --registry demo/registry
  recsys bundle list --registry demo/registry
  recsys bundle promote BUNDLE --registry demo/registry --why "beats last week's by 2 %"
  recsys bundle rollback --registry demo/registry --why "complaints since noon"
"""


def main(arguments: list[str]) -> None:
    """Runs one of the subcommands."""
    parser = argparse.ArgumentParser(
        prog="recsys bundle",
        description="Seal, inspect and promote bundles.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("seal", help="make a bundle of a checkpoint and its dataset")
    made.add_argument("--checkpoint", type=Path, required=True, help="from `recsys fit`")
    made.add_argument("--dataset", type=Path, required=True, help="the one it was trained on")
    made.add_argument("--evaluation", type=Path, help="from `recsys evaluate`; goes into the manifest")
    made.add_argument("--promote", action="store_true", help="make it live at once")
    listed = commands.add_parser("list", help="all bundles, oldest first; * is live")
    shown = commands.add_parser("show", help="what a bundle says of itself")
    verified = commands.add_parser("verify", help="check every file of a bundle")
    promoted = commands.add_parser("promote", help="make a bundle live")
    rolled_back = commands.add_parser("rollback", help="make the bundle before the live one live again")
    for one in (made, listed, shown, verified, promoted, rolled_back):
        one.add_argument("--registry", type=Path, required=True, help="the registry folder")
    for one in (shown, verified):
        one.add_argument("bundle", nargs="?", help="its id; the live one if left out")
    promoted.add_argument("bundle", help="its id")
    for one in (made, promoted, rolled_back):
        one.add_argument("--why", default="", help="for the log")
    said = parser.parse_args(arguments)
    registry = Registry(said.registry)
    match said.command:
        case "seal":
            _seal(registry, said)
        case "list":
            _list(registry)
        case "show":
            manifest = registry.manifest(_named_or_live(registry, said.bundle))
            print(json.dumps({"created": manifest.created, "digest": manifest.digest} | manifest.content, indent=1))
        case "verify":
            bundle = _named_or_live(registry, said.bundle)
            print(f"{bundle}: {len(registry.verify(bundle).files)} files match its manifest")
        case "promote":
            print(f"{registry.promote(said.bundle, why=said.why).bundle} is live")
        case "rollback":
            print(f"{registry.rollback(why=said.why).bundle} is live again")


def _seal(registry: Registry, said: argparse.Namespace) -> None:
    evaluation = _evaluation(said.evaluation) if said.evaluation else None

    def write(path: Path) -> Manifest:
        return seal(said.checkpoint, said.dataset, path, evaluation=evaluation)

    bundle = registry.publish(write)
    index = registry.manifest(bundle).content["index"]
    print(f"sealed {bundle}: {index['kind']} index, recall@10 {index['recall@10']:.4f} against exact search")
    if said.promote:
        registry.promote(bundle, why=said.why or f"sealed and promoted by {getpass.getuser()}")
        print(f"{bundle} is live")


def _evaluation(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"there is no evaluation {file}; run `recsys evaluate --out {file}` first") from None
    except ValueError as error:
        raise ArtifactError(f"{file} is no evaluation ({error}); run `recsys evaluate --out {file}` again") from None


def _list(registry: Registry) -> None:
    live = registry.current
    for bundle in registry.bundles():
        content = registry.manifest(bundle).content
        sizes = f"{content['items']:>9,} items  {content['users']:>11,} users  {content['dimension']:>4} dimensions"
        print(f"{'*' if bundle == live else ' '} {bundle}  {sizes}  {content['index']['kind']}")


def _named_or_live(registry: Registry, bundle: str | None) -> str:
    named = bundle or registry.current
    if named is None:
        raise ValueError(f"no bundle is live in {registry.path}; name one, or promote one first")
    return named
