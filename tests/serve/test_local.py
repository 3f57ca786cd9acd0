"""`python -m serve` for real: Ray Serve behind HAProxy answers on one port, and leaves nothing when told to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.registry import Registry
from serve.__main__ import main
from serve.local import end_processes_of, own_folder, processes_of
from serve.page import HEADERS, files
from tests.toy import RING, ring_lengths

PATIENCE_S = 150  # a busy machine starts Ray's dozen processes slowly
LOOPBACK = ("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def free_port() -> int:
    for port in range(8120, 8200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("every port from 8120 to 8199 is taken; stop what listens there")


class Running:
    """The service in a process of its own."""

    def __init__(self, registry: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "serve", "--registry", str(registry), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.greeting = self._greeting()

    def _greeting(self) -> str:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:  # ends when the process does
            lines.append(line)
            if "Ctrl-C" in line:
                break
        return "".join(lines)

    def ask(self, target: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{target}", data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def folder(self) -> Path:
        (found,) = {
            Path(match[0])
            for pid in descendants(self.process.pid)
            if (match := re.search(r"/tmp/recsys-\w+", command_line(pid)))
        }
        return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pids: set[int]) -> dict[int, str]:
    return {pid: command_line(pid) for pid in pids if command_line(pid)}  # a zombie has no command line


@pytest.fixture(scope="module")
def running(toy_registry: Registry) -> Iterator[Running]:
    service = Running(toy_registry.path)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.terminate()
            service.process.wait(60)


@pytest.mark.timeout(2 * PATIENCE_S)
def test_it_says_where_to_ask_and_answers_there(running: Running) -> None:
    addresses = re.findall(r"^\S.*?  +(http://127\.0\.0\.1:(\d+)\S+)$", running.greeting, flags=re.M)
    assert {int(port) for _, port in addresses} == {running.port}, running.greeting
    for address, _ in addresses:
        urllib.request.urlopen(address, timeout=10).close()


def test_recommendations_are_those_known_by_hand(running: Running) -> None:
    for user in range(5):
        status, said, _ = running.ask(f"/v1/users/u{user}/recommendations?k=1")
        assert (status, said["strategy"]) == (200, "personalised")
        assert said["items"][0]["item_id"] == f"i{(user + ring_lengths()[user]) % RING}"
    status, said, _ = running.ask("/v1/recommendations", {"history": ["i4", "i5", "i6"], "k": 1})
    assert (status, said["strategy"], said["items"][0]["item_id"]) == (200, "history", "i7")


def test_errors_come_through_the_proxy_as_problems(running: Running) -> None:
    for target, body, expected in [
        ("/v1/items/no%2Fsuch/similar", None, 404),
        ("/nowhere", None, 404),
        ("/v1/users/u0/recommendations?k=501", None, 422),
        ("/v1/recommendations", [1], 422),
        ("/v1/recommendations", {"user_id": "x" * (1 << 20)}, 413),
    ]:
        status, said, headers = running.ask(target, body, {"X-Request-ID": "r-1"})
        assert (status, said["status"], headers["content-type"]) == (expected, expected, "application/problem+json")
        assert headers.get_all("x-request-id") == ["r-1"]
    assert "'no/such'" in running.ask("/v1/items/no%2Fsuch/similar")[1]["detail"]


def test_the_page_comes_through_the_proxy_as_it_is_and_is_not_sent_twice(running: Running) -> None:
    address = f"http://127.0.0.1:{running.port}/"
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert (answer.headers["content-type"], answer.read()) == ("text/html; charset=utf-8", files()["/"].body)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        tag = answer.headers["etag"]
    with pytest.raises(urllib.error.HTTPError) as again:
        urllib.request.urlopen(urllib.request.Request(address, headers={"If-None-Match": tag}), timeout=20)
    assert again.value.code == 304
    assert running.ask("/ui/..%2fpage.py")[0] == 404


def test_nothing_that_answers_without_a_secret_listens_beyond_this_machine(running: Running) -> None:
    sockets = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False)
    if sockets.returncode:
        pytest.skip("needs ss of iproute2 to list the listening sockets")
    ours = {running.process.pid} | descendants(running.process.pid)
    beyond = [
        line
        for line in sockets.stdout.splitlines()
        if any(f"pid={pid}," in line for pid in ours) and not line.split()[3].startswith(LOOPBACK)
    ]
    # Ray binds one server of each replica to every interface, whatever is set; it asks for the instance's secret.
    assert all("ServeRepli" in line for line in beyond), beyond
    import grpc  # type: ignore[import-untyped]

    for line in beyond:
        channel = grpc.insecure_channel(f"127.0.0.1:{line.split()[3].rpartition(':')[2]}")
        with pytest.raises(grpc.RpcError) as caught, channel:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_told_to_stop_it_ends_and_leaves_neither_process_nor_file(running: Running) -> None:
    folder = running.folder()
    before = descendants(running.process.pid)
    assert any("haproxy" in command for command in alive(before).values())
    running.process.send_signal(signal.SIGTERM)
    rest, complaints = running.process.communicate(timeout=60)
    assert running.process.returncode == 0, complaints
    assert rest == ""
    assert {json.loads(line)["level"] for line in complaints.splitlines()} <= {"info"}, complaints
    deadline = time.monotonic() + 10
    while alive(before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(before) == {}
    assert not folder.exists()


def test_a_process_left_behind_is_ended_and_another_folders_is_not() -> None:
    with own_folder() as other:
        bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(other)])
        with own_folder() as folder:
            left = subprocess.Popen([sys.executable, "-c", STUBBORN, str(folder / "x")], stdout=subprocess.PIPE)
            assert left.stdout is not None
            left.stdout.readline()
            assert processes_of(folder) == [left.pid]
            end_processes_of(folder, patience_s=0.5)
            assert left.wait(5) == -signal.SIGKILL
            assert processes_of(folder) == []
        assert not folder.exists()
        assert bystander.poll() is None
    assert bystander.wait(5) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--registry", "no/such/folder"], "there is no registry at"),
        (["--registry", ".", "--replicas", "0"], "replicas: Input should be greater than or equal to 1"),
        (["--registry", ".", "--port", "70000"], "--port must be 1 to 65535"),
        ([], "--registry"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_starts(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m serve --registry registry --port 8080" in capsys.readouterr().out


def test_a_registry_without_a_live_bundle_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--registry", str(tmp_path)])
    assert "promote" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_at_once(toy_registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["--registry", str(toy_registry.path), "--port", str(port)])
    assert f"{port} is taken" in capsys.readouterr().err
    assert os.environ.get("RAY_AUTH_TOKEN") is None
