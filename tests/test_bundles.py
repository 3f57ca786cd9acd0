"""`recsys bundle`: what it prints, in tables that line up, and what it refuses."""

import json
import shutil

import pytest

from recsys.artifacts import read_manifest
from recsys.bundles import diff
from recsys.cli import main
from recsys.registry import Registry
from tests.damage import copied, flip, sealed_again

REFUSED = {"passed": False, "failed": ["popularity", "coverage"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def added(registry, bundle, tmp_path, **content):
    copy = sealed_again(copied(bundle, tmp_path / f"copy-{len(registry.bundles())}"), **content)
    return registry.publish(lambda path: read_manifest(shutil.copytree(copy, path), "bundle", 1))


@pytest.fixture(params=["folder", "address"])
def three(request, tmp_path, toy_bundle, stranger):
    """A registry with a bundle that is live, one that its gates refused and one that passed."""
    name = f"memory://{tmp_path.name}/registry"
    registry = Registry(tmp_path / "registry" if request.param == "folder" else name)
    a = registry.publish(lambda path: read_manifest(shutil.copytree(toy_bundle.path, path), "bundle", 1))
    b = added(registry, stranger, tmp_path, verdict=REFUSED)
    c = added(registry, stranger, tmp_path, verdict={"passed": True, "failed": []})
    registry.promote(a, why="the first")
    return registry, a, b, c


@pytest.fixture
def said(three, capsys):
    """What a command prints about the registry."""

    def said(*arguments):
        capsys.readouterr()
        assert main(["bundle", *arguments, "--registry", three[0].address]) == 0
        return capsys.readouterr().out

    return said


@pytest.fixture
def refused(three, capsys):
    """What a command says that refuses: one line."""

    def refused(*arguments):
        capsys.readouterr()
        assert main(["bundle", *arguments, "--registry", three[0].address]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return refused


def test_the_list_lines_up_and_tells_what_is_live_and_what_was_refused(three, said):
    registry, a, b, c = three
    head, *rows = said("list").splitlines()
    assert head.split() == ["bundle", "created", "items", "users", "dimension", "index", "NDCG@10", "verdict"]
    by_id = {row.split()[1 if row.startswith("*") else 0]: row for row in rows}
    assert list(by_id) == registry.bundles()
    assert [row[0] for row in by_id.values()] == ["*" if bundle == a else " " for bundle in by_id]
    assert by_id[b].endswith("refused: popularity, coverage")
    assert by_id[c].endswith("passed")
    assert by_id[a].endswith("–")
    figure = registry.manifest(a).content["evaluation"]["results"]["results"]["two towers"]["accuracy"]["ndcg@10"]
    assert f"{figure['value']:.4f}" in by_id[a]
    for word in ("items", "users", "dimension", "NDCG@10"):
        end = head.index(word) + len(word)
        assert all(row[end - 1] != " " and row[end] == " " for row in rows), word
    starts = {head.index("verdict"), *(row.rindex(last) for row, last in zip(rows, map(last_cell, rows), strict=True))}
    assert len(starts) == 1


def last_cell(row):
    return row.split("  ")[-1].strip()


def test_the_list_as_json(three, said):
    registry, a, b, _ = three
    listed = {one["bundle"]: one for one in json.loads(said("list", "--json"))}
    assert list(listed) == registry.bundles()
    assert [bundle for bundle, one in listed.items() if one["live"]] == [a]
    assert (listed[b]["items"], listed[b]["index"], listed[b]["NDCG@10"]) == (13, "flat", None)
    assert listed[b]["verdict"] == REFUSED


def test_a_damaged_bundle_does_not_hide_the_others(three, said):
    registry, a, b, _ = three
    registry.store.write(f"bundles/{b}/manifest.json", "{")
    rows = said("list").splitlines()
    assert len(rows) == 4
    assert any(row.split() == [b, "damaged;", "see", "`recsys", "bundle", "verify", f"{b}`"] for row in rows)
    listed = {one["bundle"]: one for one in json.loads(said("list", "--json"))}
    assert "manifest.json cannot be read" in listed[b]["error"]
    assert listed[a]["items"] == 13


def test_an_empty_registry_is_listed(tmp_path, capsys):
    for command in ("list", "log"):
        assert main(["bundle", command, "--registry", str(tmp_path)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
        assert main(["bundle", command, "--json", "--registry", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out) == []


def test_what_the_gates_refused_goes_live_only_with_a_reason(three, said, refused):
    registry, a, b, c = three
    message = f"{b} was refused by its gates (popularity, coverage); to promote it all the same, say --why"
    assert refused("promote", b) == f"recsys bundle: {message}"
    assert registry.current == a
    assert said("promote", b, "--why", "they are wrong") == (
        f"{b} is live\nalthough its gates refused it: popularity, coverage\n"
    )
    assert (registry.current, registry.log()[-1].why) == (b, "they are wrong")
    assert said("promote", c) == f"{c} is live\n"


def test_the_log_lines_up(three, said):
    registry, a, b, _ = three
    said("promote", b, "--why", "a reason with words")
    said("rollback", "--why", "wrong")
    head, *rows = said("log").splitlines()
    assert [head.index(word) for word in ("when", "who", "action", "bundle", "instead of", "why")]
    assert [row[head.index("why") :] for row in rows] == ["the first", "a reason with words", "wrong"]
    places = [head.index(word) for word in ("action", "bundle", "instead of")]
    assert [[row[place:].split()[0] for place in places] for row in rows] == [
        ["promote", a, "–"], ["promote", b, a], ["rollback", a, b],
    ]  # fmt: skip
    assert json.loads(said("log", "--json")) == [vars(one) for one in registry.log()]


def test_prune_says_what_goes(three, said, refused):
    registry, a, *_ = three
    gone = [bundle for bundle in registry.bundles() if bundle != a][:-1]
    assert len(gone) == 1
    kept = registry.bundles()
    assert said("prune", "--keep", "1", "--dry-run") == f"would remove {gone[0]}\n1 to remove, 2 kept\n"
    assert registry.bundles() == kept
    assert said("prune", "--keep", "1", "--why", "old") == f"removed {gone[0]}\n1 removed, 2 kept\n"
    assert registry.bundles() == [bundle for bundle in kept if bundle != gone[0]]
    assert said("prune", "--keep", "1") == "0 removed, 2 kept\n"
    assert refused("prune", "--keep", "-1") == "recsys bundle: keep must be 0 or more, got -1"


@pytest.fixture(scope="module")
def another(shop_bundle, toy_bundle):
    """The toy's bundle, then one of other items, users, dimension, schema, and without figures."""
    return toy_bundle, shop_bundle


def test_what_differs_between_two_bundles(another, tmp_path, capsys):
    before = another[0]
    registry = Registry(tmp_path / "registry")
    a, b = (added(registry, bundle.path, tmp_path) for bundle in another)
    said = diff(registry, a, b)
    assert said["facts"]["items"] == [13, 20]
    assert said["facts"]["users"] == [80, 12]
    assert said["facts"]["interactions"] == [560, 103]
    assert said["facts"]["dimension"] == [16, 8]
    assert said["facts"]["index"] == ["flat", "flat"]
    figures = before.manifest.content["evaluation"]["results"]["results"]["two towers"]
    assert said["facts"]["NDCG@10"] == [figures["accuracy"]["ndcg@10"]["value"], None]
    assert said["facts"]["recall@10"] == [figures["accuracy"]["recall@10"]["value"], None]
    assert said["facts"]["coverage@10"] == [figures["catalogue"]["coverage@10"], None]
    assert said["facts"]["first interaction"][0] == "2023-11-14 22:13"
    # i0 to i11 and "new", then i0 to i19.
    assert said["items"]["added"]["count"] == 8
    assert set(said["items"]["added"]["examples"]) < {f"i{item}" for item in range(12, 20)}
    assert said["items"]["removed"] == {"count": 1, "examples": ["new"]}
    assert said["users"] == {"added": {"count": 0}, "removed": {"count": 68}}
    assert said["schema"]["interactions.user"] == ["who", "user"]
    assert said["measured_alike"] is None

    capsys.readouterr()
    assert main(["bundle", "diff", a, b, "--registry", registry.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:17].strip(): line[17:].split() for line in lines}
    assert rows["items"] == ["13", "20", "+7"]
    assert rows["interactions"] == ["560", "103", "-457"]
    ends = {len(line) for line in lines if line.startswith(("items", "users", "interactions", "dimension"))}
    assert len(ends) == 1
    assert "1 items removed: new" in lines
    assert any(line.startswith("8 items added: i12, ") and line.endswith(" …") for line in lines)
    assert "68 users removed" in lines
    assert 'schema interactions.user: "who" → "user"' in lines

    assert main(["bundle", "diff", a, b, "--json", "--registry", registry.address]) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_a_bundle_does_not_differ_from_itself(three, said):
    _, a, _, _ = three
    same = json.loads(said("diff", a, a, "--json"))
    assert all(before == after for before, after in same["facts"].values())
    assert same["items"]["added"] == same["items"]["removed"] == {"count": 0, "examples": []}
    assert (same["schema"], same["measured_alike"]) == ({}, True)
    assert "compare" not in said("diff", a, a)


def test_figures_that_were_measured_otherwise_are_said_not_to_compare(tmp_path, toy_bundle):
    registry = Registry(tmp_path / "registry")
    evaluation = json.loads(json.dumps(toy_bundle.manifest.content["evaluation"]))
    a = added(registry, toy_bundle.path, tmp_path)
    evaluation["results"]["conditions"]["num_queries"] = 1
    b = added(registry, toy_bundle.path, tmp_path, evaluation=evaluation)
    assert diff(registry, a, b)["measured_alike"] is False


def test_ids_are_checked_before_they_are_compared(tmp_path, toy_bundle, capsys):
    registry = Registry(tmp_path / "registry")
    a = added(registry, toy_bundle.path, tmp_path)
    flip(registry.bundle_path(a) / "user_ids.arrow")
    assert main(["bundle", "diff", a, a, "--registry", registry.address]) == 1
    assert "user_ids.arrow does not match its sha256" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["bundle", "--help"])
    shown = capsys.readouterr().out
    for command in ("seal", "list", "show", "diff", "promote", "rollback", "log", "verify", "prune"):
        assert f"\n    {command} " in shown
    assert 'recsys bundle rollback --registry demo/registry --why "complaints since noon"' in shown
