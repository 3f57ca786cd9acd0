"""The page's files as they are served: their types, tags, and that nothing beside them can be had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serve.asgi import Application
from serve.ingress import Ingress
from serve.page import FOLDER, HEADERS, files
from serve.service import Service
from tests.serve.asking import ask

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_every_file_of_the_folder_is_served_with_its_type_and_under_the_policy(app: Application) -> None:
    for path in FOLDER.iterdir():
        reply = ask(app, "GET", "/" if path.name == "index.html" else f"/ui/{path.name}")
        assert (reply.status, reply.body) == (200, path.read_bytes())
        assert reply.headers["content-type"].split(";")[0] == TYPES[path.suffix[1:]]
        assert {name: reply.headers[name.lower()] for name in HEADERS} == HEADERS
        assert [name for name, _ in reply.sent_headers].count(b"x-request-id") == 1


def test_a_copy_that_is_still_good_is_not_sent_again(app: Application) -> None:
    first = ask(app, "GET", "/")
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = ask(app, "GET", "/", headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert ask(app, "GET", "/", headers={"If-None-Match": '"other"'}).status == 200
    assert len({file.tag for file in files().values()}) == len(files())


@pytest.mark.parametrize(
    "target",
    [
        "/ui",
        "/ui/",
        "/ui/index.html",
        "/ui/none.js",
        "/ui/../page.py",
        "/ui/..%2fpage.py",
        "/ui/%2e%2e/page.py",
        "/ui//app.js",
        "/ui/app.js%00",
        "/ui/APP.JS",
        "//app.js",
        "/index.html",
    ],
)
def test_nothing_but_the_files_is_there(app: Application, target: str) -> None:
    assert ask(app, "GET", target).status == 404


def test_other_methods_are_told_which_there_are(app: Application) -> None:
    assert ask(app, "HEAD", "/").status == 200
    for target in ("/", "/ui/app.js"):
        reply = ask(app, "POST", target, {})
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


def test_what_stands_around_it_in_a_replica_lets_it_pass_as_it_is(service: Service) -> None:
    app = Ingress(Application(service, sends_request_id=False))
    reply = ask(app, "GET", "/ui/style.css")
    assert (reply.status, reply.body) == (200, files()["/ui/style.css"].body)
    assert {name: reply.headers[name.lower()] for name in HEADERS} == HEADERS
    assert ask(app, "GET", "/ui/style.css", headers={"If-None-Match": reply.headers["etag"]}).status == 304


def test_it_can_be_turned_off(service: Service) -> None:
    app = Application(service, page=False)
    assert ask(app, "GET", "/").status == ask(app, "GET", "/ui/app.js").status == 404
    assert ask(app, "GET", "/docs").status == 200


def test_the_page_is_no_part_of_the_documented_api(app: Application) -> None:
    assert not {
        path for path in ask(app, "GET", "/openapi.json").json["paths"] if path == "/" or "ui" in path.split("/")
    }


def test_the_files_name_no_other_address_and_none_that_is_missing() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        for name in re.findall(r'(?:from "\./|(?:href|src)="ui/)([\w.]+)"', text):
            assert (FOLDER / name).exists(), f"{path.name} names {name}"
    assert all(Path(name).suffix for name in files() if name != "/")
