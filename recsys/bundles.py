"""`recsys bundle`: seal a checkpoint, look at what a registry holds and how bundles differ, say which one is live."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.artifacts import ArtifactError, Manifest, check_file
from recsys.bundle import Bundle
from recsys.ids import IdMap
from recsys.registry import Registry
from recsys.seal import seal
from recsys.spaces import align, compare

EXAMPLES = """examples:
  recsys bundle seal --checkpoint demo/run/best.ckpt --dataset demo/dataset --registry demo/registry
  recsys bundle list --registry demo/registry
  recsys bundle list --registry s3://bucket/registry --json
  recsys bundle diff A B --registry demo/registry
  recsys bundle compare A B --registry demo/registry
  recsys bundle align BUNDLE --registry demo/registry
  recsys bundle promote BUNDLE --registry demo/registry --why "beats last week's by 2 %"
  recsys bundle rollback --registry demo/registry --why "complaints since noon"
  recsys bundle prune --keep 7 --dry-run --registry demo/registry

A registry is a folder or an address that fsspec knows; keys and endpoints come from its own configuration, such as
FSSPEC_S3_ENDPOINT_URL. What an address holds is fetched to RECSYS_CACHE (~/.cache/recsys) to be opened.
"""
_EXAMPLES = 5
_FIGURES = {"NDCG@10": ("accuracy", "ndcg@10"), "recall@10": ("accuracy", "recall@10")}
_FIGURES["coverage@10"] = ("catalogue", "coverage@10")

Run = Callable[[Registry, argparse.Namespace], None]


def main(arguments: list[str]) -> None:
    """Runs one of the subcommands."""
    said = _parser().parse_args(arguments)
    said.run(Registry(said.registry), said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recsys bundle",
        description="Seal, inspect, compare and promote bundles.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run, says: str, *, why: bool = False, as_json: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        made.add_argument("--registry", required=True, metavar="PLACE", help="the registry's folder or address")
        if why:
            made.add_argument("--why", default="", help="for the log")
        if as_json:
            made.add_argument("--json", action="store_true", help="as JSON, for programs")
        made.set_defaults(run=run)
        return made

    made = command("seal", _seal, "make a bundle of a checkpoint and its dataset", why=True)
    made.add_argument("--checkpoint", type=Path, required=True, help="from `recsys fit`")
    made.add_argument("--dataset", type=Path, required=True, help="the one it was trained on")
    made.add_argument("--evaluation", type=Path, help="from `recsys evaluate`; goes into the manifest")
    made.add_argument("--promote", action="store_true", help="make it live at once")
    command("list", _list, "all bundles, oldest first; * is live", as_json=True)
    shown = command("show", _show, "what a bundle says of itself, as JSON")
    shown.add_argument("bundle", nargs="?", help="its id; the live one if left out")
    compared = command("diff", _diff, "what differs between two bundles", as_json=True)
    compared.add_argument("a", metavar="A", help="the one before")
    compared.add_argument("b", metavar="B", help="the one after")
    measured = command("compare", _compare, "what vectors of one bundle still mean in another", as_json=True)
    measured.add_argument("a", metavar="A", help="the one whose vectors somebody keeps")
    measured.add_argument("b", metavar="B", help="the one that they meet")
    turned = command("align", _align, "add a bundle again, its space rotated onto the live one's")
    turned.add_argument("bundle", help="its id; it stays as it is")
    turned.add_argument("--to", metavar="LIVE", help="whose space; the live one's if left out")
    promoted = command("promote", _promote, "make a bundle live", why=True)
    promoted.add_argument("bundle", help="its id")
    command("rollback", _rollback, "make the bundle before the live one live again", why=True)
    command("log", _log, "who made what live, when and why, oldest first", as_json=True)
    verified = command("verify", _verify, "check every file of a bundle, where it is kept")
    verified.add_argument("bundle", nargs="?", help="its id; the live one if left out")
    pruned = command("prune", _prune, "remove old bundles; the live one and the one before it always stay", why=True)
    pruned.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the newest to keep")
    pruned.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    return parser


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


def _list(registry: Registry, said: argparse.Namespace) -> None:
    live = registry.current
    listed: list[dict[str, Any]] = []
    for bundle in registry.bundles():
        try:
            listed.append({"bundle": bundle, "live": bundle == live} | _summary(registry.manifest(bundle)))
        except ArtifactError as error:  # one that is damaged does not hide the others
            listed.append({"bundle": bundle, "live": bundle == live, "error": str(error)})
    if said.json:
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    rows = [["", "bundle", "created", "items", "users", "dimension", "index", "NDCG@10", "verdict"]]
    for one in listed:
        row = ["*" if one["live"] else "", one["bundle"]]
        if "error" in one:
            rows.append([*row, f"damaged; see `recsys bundle verify {one['bundle']}`"])
            continue
        sizes = [f"{one[name]:,}" for name in ("items", "users", "dimension")]
        rows.append([*row, _moment(one["created"]), *sizes, one["index"], _number(one["NDCG@10"]), _ruling(one)])
    print(_aligned(rows, right={3, 4, 5, 7}))


def _show(registry: Registry, said: argparse.Namespace) -> None:
    manifest = registry.manifest(_named_or_live(registry, said.bundle))
    print(json.dumps({"created": manifest.created, "digest": manifest.digest} | manifest.content, indent=1))


def _promote(registry: Registry, said: argparse.Namespace) -> None:
    verdict = registry.manifest(said.bundle).content.get("verdict")
    refused = verdict is not None and not verdict["passed"]
    gates = ", ".join((verdict or {}).get("failed", []))
    if refused and not said.why:
        raise ValueError(f"{said.bundle} was refused by its gates ({gates}); to promote it all the same, say --why")
    print(f"{registry.promote(said.bundle, why=said.why).bundle} is live")
    if refused:
        print(f"although its gates refused it: {gates}")


def _rollback(registry: Registry, said: argparse.Namespace) -> None:
    print(f"{registry.rollback(why=said.why).bundle} is live again")


def _log(registry: Registry, said: argparse.Namespace) -> None:
    log = registry.log()
    if said.json:
        print(json.dumps([asdict(one) for one in log], indent=1, ensure_ascii=False))
        return
    rows = [["when", "who", "action", "bundle", "instead of", "why"]]
    rows += [[_moment(one.when), one.who, one.action, one.bundle, one.instead_of or "–", one.why] for one in log]
    print(_aligned(rows))


def _verify(registry: Registry, said: argparse.Namespace) -> None:
    bundle = _named_or_live(registry, said.bundle)
    print(f"{bundle}: {len(registry.verify(bundle).files)} files match its manifest")


def _prune(registry: Registry, said: argparse.Namespace) -> None:
    gone = registry.prune(said.keep, why=said.why, dry_run=said.dry_run)
    for bundle in gone:
        print(f"{'would remove' if said.dry_run else 'removed'} {bundle}")
    left = len(registry.bundles()) - (len(gone) if said.dry_run else 0)
    print(f"{len(gone)} {'to remove' if said.dry_run else 'removed'}, {left} kept")


def _diff(registry: Registry, said: argparse.Namespace) -> None:
    difference = diff(registry, said.a, said.b)
    if said.json:
        print(json.dumps(difference, indent=1, ensure_ascii=False))
        return
    rows = [["", said.a, said.b, ""]]
    for name, (a, b) in difference["facts"].items():
        change = b - a if isinstance(a, int | float) and isinstance(b, int | float) and a != b else None
        rows.append([name, _number(a), _number(b), "" if change is None else f"{_number(change, sign=True)}"])
    print(_aligned(rows, right={1, 2, 3}))
    for kind in ("items", "users"):
        for what in ("added", "removed"):
            ids = difference[kind][what]
            examples = ", ".join(map(str, ids.get("examples", [])))
            more = " …" if examples and ids["count"] > _EXAMPLES else ""
            print(f"{ids['count']:,} {kind} {what}{': ' if examples else ''}{examples}{more}")
    for name, (a, b) in difference["schema"].items():
        print(f"schema {name}: {json.dumps(a, ensure_ascii=False)} → {json.dumps(b, ensure_ascii=False)}")
    if difference["measured_alike"] is False:
        print("The figures were measured under different conditions (see `show`), so that they do not compare.")


def _compare(registry: Registry, said: argparse.Namespace) -> None:
    old, new = (Bundle.open(registry.bundle_path(bundle)) for bundle in (said.a, said.b))
    found = compare(old, new)
    if said.json:
        print(json.dumps(found.figures(), indent=1))
        return
    rows = [["vectors of A", "as they are", "rotated", "B's own"]]
    for name, kept in (("items", found.items), ("users", found.users)):
        if kept is not None:
            shares = [f"{share:.4f}" for share in (kept.raw, kept.rotated, kept.ceiling)]
            rows.append([f"{name}: neighbours kept, of {found.k}", *shares])
    for name in ("cosine", "residual"):
        rows.append([f"items: {name}", *(f"{getattr(one, name):.4f}" for one in (found.before, found.after)), ""])
    print(f"{found.shared_items:,} items and {found.shared_users:,} users in both, {found.dimension} dimensions")
    print(_aligned(rows, right={1, 2, 3}))
    print(found.verdict)


def _align(registry: Registry, said: argparse.Namespace) -> None:
    to = _named_or_live(registry, said.to)
    candidate, live = registry.bundle_path(said.bundle), registry.bundle_path(to)
    made = registry.publish(lambda out: align(candidate, live, out))
    kept = registry.manifest(made).content["aligned_to"]["items"]
    print(f"{made} is {said.bundle} in the space of {to}")
    print(f"vectors of {to} find {kept['rotated']:.1%} of their neighbours in it; before, {kept['raw']:.1%}")


def diff(registry: Registry, a: str, b: str) -> dict[str, Any]:
    """What differs between two bundles, as JSON values; every pair is of `a`, then of `b`.

    Args:
        registry: that holds both.
        a: the id of the one before.
        b: the id of the one after.

    Raises:
        ArtifactError: one is not there, or its manifest or an id map is damaged.
    """
    manifests = [registry.manifest(bundle) for bundle in (a, b)]
    before, after = (_facts(manifest) for manifest in manifests)
    schemas = [_flat(manifest.content["schema"]) for manifest in manifests]
    names = sorted(schemas[0].keys() | schemas[1].keys())
    paths = [registry.bundle_path(bundle) for bundle in (a, b)]
    conditions = [
        (manifest.content.get("evaluation") or {}).get("results", {}).get("conditions") for manifest in manifests
    ]
    return {
        "bundles": [a, b],
        "facts": {name: [before[name], after[name]] for name in before},
        "items": _changed_ids(paths, manifests, "item_ids", examples=True),
        "users": _changed_ids(paths, manifests, "user_ids", examples=False),
        "schema": {
            name: [schema.get(name) for schema in schemas]
            for name in names
            if schemas[0].get(name) != schemas[1].get(name)
        },
        "measured_alike": None if None in conditions else conditions[0] == conditions[1],
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    content = manifest.content
    first, last = content.get("time_range") or (None, None)
    return {
        "created": _moment(manifest.created),
        "code version": manifest.code_version,
        "dataset": content["dataset"][:12],
        "checkpoint": content["checkpoint"][:12],
        "first interaction": _instant(first),
        "last interaction": _instant(last),
        "interactions": content["interactions"],
        "items": content["items"],
        "users": content["users"],
        "dimension": content["dimension"],
        "index": content["index"]["kind"],
        "index bytes": content["index"]["bytes"],
        "index recall@10": content["index"]["recall@10"],
        **_figures(content),
        "verdict": _ruling(content),
    }


def _summary(manifest: Manifest) -> dict[str, Any]:
    content = manifest.content
    return {
        "created": manifest.created,
        **{name: content[name] for name in ("items", "users", "interactions", "dimension")},
        "index": content["index"]["kind"],
        **_figures(content),
        "verdict": content.get("verdict"),
    }


def _figures(content: dict[str, Any]) -> dict[str, float | None]:
    """The figures of the evaluation's first scorer, which is the model; None where nothing was measured."""
    results = (content.get("evaluation") or {}).get("results", {}).get("results", {})
    measured: dict[str, Any] = next(iter(results.values()), {})
    figures = {}
    for name, (group, metric) in _FIGURES.items():
        figure = measured.get(group, {}).get(metric)
        figures[name] = figure["value"] if isinstance(figure, dict) else figure
    return figures


def _changed_ids(paths: list[Path], manifests: list[Manifest], name: str, *, examples: bool) -> dict[str, Any]:
    for path, manifest in zip(paths, manifests, strict=True):
        check_file(path, manifest, f"{name}.arrow")
    before, after = (IdMap.load(path / f"{name}.arrow").array for path in paths)
    if before.type != after.type:
        before, after = before.cast(pa.string()), after.cast(pa.string())
    changed = {}
    for what, ids, others in (("added", after, before), ("removed", before, after)):
        new = ids.filter(pc.invert(pc.is_in(ids, value_set=others)))
        changed[what] = {"count": len(new)} | ({"examples": new[:_EXAMPLES].to_pylist()} if examples else {})
    return changed


def _flat(value: Any, below: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {below: value}
    return {key: leaf for name, one in value.items() for key, leaf in _flat(one, f"{below}.{name}".lstrip(".")).items()}


def _named_or_live(registry: Registry, bundle: str | None) -> str:
    named = bundle or registry.current
    if named is None:
        raise ValueError(f"no bundle is live in {registry.address}; name one, or promote one first")
    return named


def _ruling(said: dict[str, Any]) -> str:
    verdict = said.get("verdict")
    if verdict is None:
        return "–"
    return "passed" if verdict["passed"] else f"refused: {', '.join(verdict['failed'])}"


def _moment(written: str) -> str:
    return written[:16].replace("T", " ")


def _instant(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else _moment(datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat())


def _number(value: Any, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    match value:
        case None:
            return "–"
        case int():
            return f"{value:{plus},}"
        case float():
            return f"{value:{plus}.4f}"
        case _:
            return str(value)


def _aligned(rows: list[list[str]], right: Collection[int] = ()) -> str:
    """Rows as lines, columns beside each other; a row shorter than the first hangs over with its last cell."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]

    def line(row: list[str]) -> str:
        pairs = enumerate(zip(row, widths, strict=False))
        return "  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in pairs).rstrip()

    return "\n".join(map(line, rows))
