"""Every route as documented: what it answers, and to what else documentation and behaviour agree."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from pydantic import ValidationError

from recsys.recommender import Event, Recommender
from recsys.rules import Rules
from serve.answers import AnswerBody
from serve.api import documented
from serve.asgi import Application
from serve.observer import Observer
from serve.schemas import Limits
from serve.service import Service
from tests.serve.asking import Reply, ask, asked
from tests.serve.stand_in import StandIn

USER = "/v1/users/u3/recommendations"


def test_a_user_gets_the_best_k_in_order_each_with_rank_score_and_attributes(app: Application) -> None:
    reply = ask(app, "GET", f"{USER}?k=3")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["content-length"]) == len(reply.body)
    said = reply.json
    assert list(said) == ["bundle", "strategy", "items"]
    assert (said["bundle"], said["strategy"]) == ("toy-1", "personalised")
    assert [item["rank"] for item in said["items"]] == [1, 2, 3]
    assert [item["score"] for item in said["items"]] == sorted((i["score"] for i in said["items"]), reverse=True)
    first = said["items"][0]
    assert first["attributes"] == {"title": f"Item {first['item_id']}", "genres": ["Drama", "War"]}


def test_k_is_10_unless_said(app: Application) -> None:
    assert len(ask(app, "GET", USER).json["items"]) == 10
    assert len(ask(app, "POST", "/v1/recommendations", {}).json["items"]) == 10


@pytest.mark.parametrize(("said", "meant"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_include_seen_is_handed_on(app: Application, stand_in: StandIn, said: str, meant: bool) -> None:
    assert ask(app, "GET", f"{USER}?include_seen={said}").status == 200
    assert stand_in.calls[-1]["include_seen"] is meant


def test_why_not_asks_for_the_very_list_that_the_item_is_not_in(app: Application, stand_in: StandIn) -> None:
    body = {"user_id": "u1", "history": ["i 1"], "k": 2, "exclude": ["ï2"], "include_seen": True, "diversity": 0.5}
    assert ask(app, "POST", "/v1/recommendations", body).status == 200
    assert ask(app, "POST", "/v1/why-not", body | {"item_id": "ï2"}).status == 200
    listed, asked_why = stand_in.calls
    assert asked_why == listed
    assert (listed["include_seen"], listed["exclude"], listed["rules"]) == (True, ["ï2"], Rules(diversity=0.5))


def test_a_body_is_handed_on_whole(app: Application, stand_in: StandIn) -> None:
    history = [
        "i 1",
        7,
        {"item_id": "ï2", "timestamp": 1_700_000_000.5, "event": "buy"},
        {"item_id": "i/0", "timestamp": "2023-11-14T22:13:20Z"},
        {"item_id": "i/3", "timestamp": "2023-11-14T23:13:20+01:00"},
    ]
    body = {"user_id": "u1", "history": history, "k": 4, "exclude": ["i 4", 9], "include_seen": True}
    reply = ask(app, "POST", "/v1/recommendations", body)
    assert reply.status == 200
    assert stand_in.calls[-1] == {
        "user_id": "u1",
        "history": [
            Event("i 1"),
            Event(7),
            Event("ï2", 1_700_000_000_500, "buy"),
            Event("i/0", 1_700_000_000_000),
            Event("i/3", 1_700_000_000_000),
        ],
        "k": 4,
        "exclude": ["i 4", 9],
        "include_seen": True,
    }
    assert reply.json["unknown_items"] == [7]
    assert reply.json["strategy"] == "history"


@pytest.mark.parametrize("said", [["a", 2, "ü/b"], [], [7], ["x" * 512]])
def test_a_history_of_plain_ids_is_one_of_objects_that_say_no_more(said: list[Any]) -> None:
    model = Limits(max_history=3).models.body
    plain, objects = (
        model.model_validate({"history": some}).history for some in (said, [{"item_id": i} for i in said])
    )
    assert plain == objects == [Event(item_id) for item_id in said]
    mixed = [*said[:1], *({"item_id": i} for i in said[1:])]
    assert model.model_validate({"history": mixed}).history == plain


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (["a", "b", "c", "d"], ("history",)),
        (["a", True], ("history", 1)),
        (["a", ""], ("history", 1, "item_id")),
        (["x" * 513], ("history", 0, "item_id")),
        (["a", None], ("history", 1)),
        ("abc", ("history",)),
    ],
)
def test_a_history_that_cannot_be_is_refused_at_its_place(said: Any, place: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        Limits(max_history=3).models.body.model_validate({"history": said})
    assert [error["loc"] for error in refused.value.errors()] == [place]


def test_an_unknown_user_gets_popular_items_and_the_strategy_says_so(app: Application) -> None:
    assert ask(app, "GET", "/v1/users/nobody/recommendations").json["strategy"] == "popular"
    assert ask(app, "POST", "/v1/recommendations", {"history": []}).json["strategy"] == "popular"


@pytest.mark.parametrize("row", [0, 1, 2])
def test_ids_with_slashes_spaces_and_unicode_are_found_by_their_address(app: Application, row: int) -> None:
    item_id = ["i/0", "i 1", "ï2"][row]
    reply = ask(app, "GET", f"/v1/items/{quote(item_id, safe='')}/similar?k=5")
    assert (reply.status, reply.json["strategy"]) == (200, "similar")
    assert item_id not in [item["item_id"] for item in reply.json["items"]]


@pytest.mark.parametrize(
    "user_id", ["a/b", "a b", "ü", "recommendations", "x/recommendations", "%2F", "..", "?", "u3#"]
)
def test_whatever_a_user_is_called_the_recommender_is_asked_for_that(
    app: Application, stand_in: StandIn, user_id: str
) -> None:
    assert ask(app, "GET", f"/v1/users/{quote(user_id, safe='')}/recommendations").status == 200
    assert stand_in.calls[-1]["user_id"] == user_id


def test_the_bundle_health_and_readiness(app: Application, service: Service) -> None:
    assert ask(app, "GET", "/v1/bundle").json == {"bundle": "toy-1", "about": {"items": 50}, "standing": {}}
    assert ask(app, "GET", "/healthz").json == {"status": "ok"}
    assert ask(app, "GET", "/readyz").json == {"status": "ok"}
    service.recommender = None
    assert ask(app, "GET", "/healthz").status == 200
    for method, target in [("GET", "/readyz"), ("GET", "/v1/bundle"), ("GET", USER), ("POST", "/v1/recommendations")]:
        reply = ask(app, method, target, {})
        assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        assert "no bundle is loaded yet" in reply.json["detail"]


def test_another_recommender_takes_over_by_assignment(app: Application, service: Service) -> None:
    other = StandIn()
    other.bundle.id = "toy-2"
    service.recommender = other  # type: ignore[assignment]
    assert ask(app, "GET", USER).json["bundle"] == "toy-2"


def test_a_request_id_is_echoed_or_made(app: Application) -> None:
    for target in (USER, "/healthz", "/nowhere"):
        assert ask(app, "GET", target, headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
        made = {ask(app, "GET", target).headers["x-request-id"] for _ in range(2)}
        assert len(made) == 2
    for bad in ("x" * 129, "ü", "a\tb"):
        assert ask(app, "GET", USER, headers={"X-Request-ID": bad}).headers["x-request-id"] != bad
    problem = ask(app, "GET", "/nowhere", headers={"X-Request-ID": "abc-1"})
    assert problem.json["request_id"] == "abc-1"


VALID: list[tuple[str, str, Any]] = [
    ("GET", USER, b""),
    ("GET", f"{USER}?k=1&include_seen=true", b""),
    ("GET", "/v1/users/a%2Fb/recommendations?k=20", b""),
    ("GET", "/v1/items/i%2F0/similar?k=2", b""),
    ("GET", "/v1/items/nope/similar", b""),
    ("POST", "/v1/recommendations", {}),
    ("POST", "/v1/recommendations", {"user_id": "u1", "k": 2, "exclude": ["i 1"]}),
    ("POST", "/v1/recommendations", {"history": ["i 1", {"item_id": "ï2", "timestamp": "2024-01-01"}, "zzz"]}),
    ("POST", "/v1/recommendations", {"filter": {"genres": "War"}}),
]
LOOKS: list[tuple[str, str, Any, str]] = [
    ("GET", "/v1/items", b"", "ItemsBody"),
    ("GET", "/v1/items?q=%C3%AF&limit=3", b"", "ItemsBody"),
    ("GET", f"/v1/items?q={'x' * 201}", b"", "Problem"),
    ("GET", "/v1/items?limit=21", b"", "Problem"),
    ("POST", "/v1/items:lookup", {"items": ["i 1", "nope", 7]}, "ItemsBody"),
    ("POST", "/v1/items:lookup", {"items": ["i 1"] * 6}, "Problem"),
    ("GET", "/v1/attributes", b"", "AttributesBody"),
    ("GET", "/v1/attributes?values=1", b"", "AttributesBody"),
    ("GET", "/v1/map", b"", "MapBody"),
    ("GET", "/v1/map?limit=7&attribute=genres", b"", "MapBody"),
    ("GET", "/v1/map?attribute=title", b"", "Problem"),
]


@pytest.mark.parametrize(("method", "target", "body"), [*VALID, *(look[:3] for look in LOOKS if look[3] != "Problem")])
def test_the_lean_way_answers_as_the_fastapi_that_documents_it(
    app: Application, service: Service, method: str, target: str, body: Any
) -> None:
    api = documented(service, Observer())

    async def by_fastapi(scope: Any, receive: Any, send: Any) -> None:
        await api({**scope, "request_id": "same"}, receive, send)

    headers = {"X-Request-ID": "same", "Content-Type": "application/json"}
    lean, documented_one = (ask(one, method, target, body, headers=headers) for one in (app, by_fastapi))
    assert (lean.status, lean.body) == (documented_one.status, documented_one.body)


def test_the_documentation_is_there_and_every_problem_is_documented_as_one(app: Application) -> None:
    assert "swagger" in ask(app, "GET", "/docs").body.decode().lower()
    said = ask(app, "GET", "/openapi.json").json
    assert sorted(said["paths"]) == [
        "/healthz",
        "/metrics",
        "/readyz",
        "/v1/attributes",
        "/v1/bundle",
        "/v1/events",
        "/v1/items",
        "/v1/items/{item_id}",
        "/v1/items/{item_id}/similar",
        "/v1/items:lookup",
        "/v1/map",
        "/v1/recommendations",
        "/v1/recommendations:batch",
        "/v1/similar",
        "/v1/users/{user_id}/recommendations",
        "/v1/why-not",
    ]
    for path in said["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"]


def documented_schema(app: Application, name: str) -> dict[str, Any]:
    said = ask(app, "GET", "/openapi.json").json
    return {"$ref": f"#/components/schemas/{name}", "components": said["components"]}


def assert_documented_as(app: Application, reply: Reply, name: str) -> None:
    jsonschema.Draft202012Validator(documented_schema(app, name)).validate(reply.json)


@pytest.mark.parametrize(("method", "target", "body"), VALID)
def test_answers_and_problems_are_as_documented(app: Application, method: str, target: str, body: Any) -> None:
    reply = ask(app, method, target, body)
    assert_documented_as(app, reply, "AnswerBody" if reply.status == 200 else "Problem")
    if reply.status == 200:
        AnswerBody.model_validate(reply.json)


@pytest.mark.parametrize(("method", "target", "body", "name"), LOOKS)
def test_what_is_looked_at_is_as_documented(app: Application, method: str, target: str, body: Any, name: str) -> None:
    reply = ask(app, method, target, body)
    assert (reply.status == 200) == (name != "Problem"), reply.body
    assert_documented_as(app, reply, name)


def test_items_are_searched_and_looked_up_and_the_map_is_of_one_length(app: Application) -> None:
    found = ask(app, "GET", "/v1/items?q=4&limit=2").json
    assert found == {
        "bundle": "toy-1",
        "items": [
            {
                "item_id": item_id,
                "attributes": {"title": f"Item {item_id}", "genres": ["Drama", "War"]},
                "available": True,
            }
            for item_id in ("i 4", "ï14")
        ],
    }
    looked_up = ask(app, "POST", "/v1/items:lookup", {"items": ["nope", "i 4"]}).json
    assert looked_up == {"bundle": "toy-1", "items": found["items"][:1], "unknown_items": ["nope"]}
    said = ask(app, "GET", "/v1/map?limit=7&attribute=genres").json
    assert {len(said[name]) for name in ("items", "x", "y", "codes")} == {7}
    assert (said["values"], said["codes"][:3], said["explained"]) == (["Drama", "War"], [-1, 0, 1], [0.5, 0.25])
    assert "codes" not in ask(app, "GET", "/v1/map").json


def test_who_looks_waits_behind_others_who_look_and_not_before_recommendations(
    app: Application, stand_in: StandIn
) -> None:
    release = threading.Event()
    stand_in.browse.search = lambda *_, **__: release.wait(5) and []  # type: ignore[assignment]

    async def run() -> None:
        looks = [asyncio.create_task(asked(app, "GET", "/v1/items")) for _ in range(17)]
        await asyncio.sleep(0.05)
        assert (await asked(app, "POST", "/v1/recommendations", {"history": ["i 1"]})).status == 200
        release.set()
        statuses = sorted([(await look).status for look in looks])
        assert statuses == [200] * 16 + [503]

    asyncio.run(run())


def test_the_documented_bounds_are_those_that_hold(app: Application) -> None:
    said = ask(app, "GET", "/openapi.json").json
    parameters = said["paths"]["/v1/users/{user_id}/recommendations"]["get"]["parameters"]
    k = next(each["schema"] for each in parameters if each["name"] == "k")
    assert (k["minimum"], k["maximum"], k["default"]) == (1, 20, 10)
    body = said["components"]["schemas"]["RecommendationRequest"]["properties"]
    assert body["k"]["maximum"] == 20
    for name, most in (("history", 5), ("exclude", 3)):
        assert body[name]["maxItems"] == most
        assert ask(app, "POST", "/v1/recommendations", {name: ["i 1"] * most}).status == 200
        assert ask(app, "POST", "/v1/recommendations", {name: ["i 1"] * (most + 1)}).status == 422
    assert [ask(app, "GET", f"{USER}?k={k}").status for k in (1, 20, 0, 21)] == [200, 200, 422, 422]


def test_a_real_recommender_answers_over_http_as_it_does_in_process(toy_bundle: Any) -> None:
    recommender = Recommender(toy_bundle)
    app = Application(Service(Limits(), recommender))
    for target, answer in [
        ("/v1/users/u0/recommendations?k=3", recommender.recommend(user_id="u0", k=3)),
        ("/v1/items/i3/similar?k=3", recommender.similar("i3", k=3)),
    ]:
        said = ask(app, "GET", target).json
        assert (said["bundle"], said["strategy"]) == (toy_bundle.id, answer.strategy)
        assert [(i["item_id"], i["rank"], i["attributes"]) for i in said["items"]] == [
            (item.item_id, item.rank, item.attributes) for item in answer.items
        ]
        assert [i["score"] for i in said["items"]] == pytest.approx([item.score for item in answer.items])
    said = ask(app, "POST", "/v1/recommendations", {"history": ["i4", "i5", "i6"], "k": 1}).json
    assert (said["strategy"], said["items"][0]["item_id"]) == ("history", "i7")  # the next one on the ring
    odd = ask(app, "POST", "/v1/recommendations", {"filter": {"parity": "odd"}, "k": 3, "user_id": "u0"}).json
    assert {item["item_id"] for item in odd["items"]} <= {"i1", "i3", "i5", "i7", "i9", "i11", "new"}
    wrong = ask(app, "POST", "/v1/recommendations", {"filter": {"partiy": "odd"}})
    assert (wrong.status, wrong.headers["content-type"]) == (422, "application/problem+json")
    assert "'partiy'" in wrong.json["detail"]
    assert "did you mean 'parity'" in wrong.json["detail"]
    assert ask(app, "GET", "/v1/items/i99/similar").status == 404
    assert ask(app, "GET", "/v1/bundle").json["about"]["items"] == 13
