"""What schedules the nightly job: each piece under its own linter or dry run, and, where that can be, run."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from cronsim import CronSim
from jsonargparse import ArgumentParser

import recsys
from recsys.nightly.command import STATUS
from recsys.nightly.settings import Settings
from serve.local import own_folder, processes_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
REFUSED = [STATUS[outcome] for outcome in ("told wrong", "refused", "locked")]  # a rerun would only say so again
# Stands for `recsys`: takes the next of the statuses that lie in its folder, and writes down that it was called.
STUB = """#!/bin/sh
cd "{folder}"
echo "$*" >> calls
read -r status < statuses
sed -i 1d statuses
echo '{{"outcome": "stub", "status": "'$status'"}}'
exit $status
"""

requires = {
    name: pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}, which is not here")
    for name in ("systemd-analyze", "shellcheck", "kubectl", "docker")
}


class Stub:
    """A `recsys` on the PATH that ends with the statuses it is given, one a call."""

    def __init__(self, folder: Path, *statuses: int) -> None:
        self.folder = folder
        (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        self.program("recsys", STUB.format(folder=folder))
        self.environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RETRY_AFTER_S": "0"}

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def cron_line() -> tuple[str, str, str]:
    """When, as whom, and what."""
    lines = [line for line in (DEPLOY / "cron/recsys").read_text().splitlines() if line and line[0] != "#"]
    (job,) = (line for line in lines if not re.match(r"[A-Z]+=", line))
    *when, who, command = job.split(None, 6)
    return " ".join(when), who, command


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_cron_runs_it_once_a_night_whatever_the_clocks_do(zone):
    began = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone))
    nights = CronSim(cron_line()[0], began)
    times = [next(nights) for _ in range(800)]
    # CronSim mends what clocks do to a time, as Debian's cron does; not every cron does, so there must be no need.
    assert all(time.replace(fold=0).utcoffset() == time.replace(fold=1).utcoffset() for time in times)
    days = [time.date() for time in times]
    assert days == [began.date() + timedelta(days=day) for day in range(800)]


def test_the_crontab_is_one_that_cron_takes():
    text = (DEPLOY / "cron/recsys").read_text()
    settings = dict(re.findall(r"^([A-Z]+)=(.*)$", text, flags=re.M))
    assert settings.keys() == {"SHELL", "PATH", "MAILTO"}
    assert text.endswith("\n"), "cron leaves out a last line that does not end"
    _, who, command = cron_line()
    assert re.fullmatch(r"[a-z]+", who)
    assert "%" not in command, "cron takes a % for the end of the line"


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [([0], 0), ([1, 0], 0), ([1, 1], 1), ([137, 0], 0), ([1, 3], 3), ([2], 2), ([3], 3), ([4], 4)],
)
def test_cron_tries_again_what_failed_and_nothing_else(tmp_path, statuses, ended):
    """Run as cron does: by SHELL, in the user's home; a further attempt would find no status and fail."""
    stub = Stub(tmp_path, *statuses)
    stub.program("recsys-nightly", (DEPLOY / "cron/recsys-nightly").read_text())
    (tmp_path / "nightly.log").write_text("last night's\n")
    command = ["/bin/sh", "-c", cron_line()[2]]
    ran = subprocess.run(command, cwd=tmp_path, env=stub.environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (ended, "")
    assert stub.calls == ["nightly --config /etc/recsys/nightly.yaml"] * len(statuses)
    log = (tmp_path / "nightly.log").read_text()
    assert re.findall(r'"status": "(\d+)"', log) == [str(status) for status in statuses]
    assert ran.stdout == ("" if ended == 0 else log), "what is said is mailed"
    assert (tmp_path / "nightly.log.1").read_text() == "last night's\n"


@requires["shellcheck"]
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", DEPLOY / "cron/recsys-nightly"], check=True)


@pytest.fixture
def units(tmp_path) -> Path:
    """The units, with a stub at the place where they look for the command."""
    Stub(tmp_path)
    for unit in (DEPLOY / "systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/recsys/bin", str(tmp_path)))
    return tmp_path


def analyze(*arguments: str | Path) -> str:
    """What systemd-analyze says of it, which must be no failure."""
    ran = subprocess.run(
        ["systemd-analyze", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@requires["systemd-analyze"]
def test_systemd_understands_every_line(units):
    # A key that it does not know is a warning, and no failure.
    assert analyze("verify", "--man=no", *sorted(units.glob("recsys-nightly*.*"))) == ""


@requires["systemd-analyze"]
def test_systemd_starts_it_every_night():
    (when,) = re.findall(r"^OnCalendar=(.*)$", (DEPLOY / "systemd/recsys-nightly.timer").read_text(), flags=re.M)
    said = analyze("calendar", "--iterations=3", when)
    days = re.findall(r"(\d{4}-\d\d-\d\d) 03:30:00", said)[-3:]
    first = datetime.fromisoformat(days[0])
    assert days == [str((first + timedelta(days=day)).date()) for day in range(3)]


@requires["systemd-analyze"]
def test_systemd_lets_it_do_little(units):
    try:
        said = analyze("security", "--offline=yes", "--threshold=20", units / "recsys-nightly.service")
    except AssertionError as error:
        if "unrecognized option" in str(error):
            pytest.skip("this systemd-analyze cannot judge a unit that is not installed")
        raise
    assert "OK" in said


def unit_settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Z]\w*)=(.*)$", (DEPLOY / "systemd" / name).read_text(), flags=re.M):
        found.setdefault(key, []).append(value)
    return found


def test_systemd_tries_again_what_failed_and_nothing_else():
    """As systemd 252 was seen to do with this unit; what it reads is all that can be tested where it does not run."""
    unit = unit_settings("recsys-nightly.service")
    assert unit["Restart"] == ["on-failure"]
    assert set(map(int, unit["RestartPreventExitStatus"][0].split())) == set(REFUSED)
    assert unit["OnFailure"] == ["recsys-nightly-failed.service"]
    assert not set(map(str, REFUSED)) & set(unit["SuccessExitStatus"][0].split()), "nobody would be told"


def test_systemd_tells_root_with_the_end_of_the_log(tmp_path):
    stub = Stub(tmp_path)
    stub.program("journalctl", '#!/bin/sh\necho "journal of $1"\n')
    stub.program("sendmail", "#!/bin/sh\ncat > mail\n")
    command = (DEPLOY / "systemd/recsys-nightly-failed.service").read_text().split("ExecStart=")[1].replace("\\\n", "")
    subprocess.run(command.replace("%H", "host"), shell=True, cwd=tmp_path, env=stub.environment, check=True)  # noqa: S602
    head, body = (tmp_path / "mail").read_text().split("\n\n")
    assert head == "To: root\nSubject: recsys nightly on host: nothing promoted"
    assert body == "journal of --unit=recsys-nightly\n"


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """By kind and name."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/nightly.yaml").read_text())
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


@pytest.fixture(scope="module")
def pod(manifests) -> dict[str, Any]:
    return manifests["CronJob/recsys-nightly"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]


# podFailurePolicy left beta in the first.
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_takes_the_manifests(manifests, version):
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


@requires["kubectl"]
def test_kubectl_reads_the_manifests(manifests):
    """Without a server it can do no more than this: `create --dry-run=client`, too, asks one what there is."""
    path = str(DEPLOY / "kubernetes/nightly.yaml")
    command = ["kubectl", "label", "--local", "--filename", path, "a=b", "--output=name"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(ran.stdout.split()) == len(manifests)


def test_kubernetes_runs_it_every_night_and_once_at_a_time(manifests):
    job = manifests["CronJob/recsys-nightly"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    nights = CronSim(job["schedule"], datetime(2026, 1, 1, tzinfo=ZoneInfo(job["timeZone"])))
    assert next(nights) + timedelta(days=1) == next(nights)


def test_kubernetes_tries_again_what_failed_and_nothing_else(manifests, pod):
    job = manifests["CronJob/recsys-nightly"]["spec"]["jobTemplate"]["spec"]
    assert job["backoffLimit"] > 0
    assert pod["restartPolicy"] == "Never", "podFailurePolicy asks for it"
    refused, disrupted = job["podFailurePolicy"]["rules"]
    assert refused["action"] == "FailJob"
    assert refused["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": REFUSED,
    }
    assert disrupted["action"] == "Ignore"


def test_kubernetes_mounts_what_the_configuration_names(manifests, pod, tmp_path):
    (container,) = pod["containers"]
    (tmp_path / "nightly.yaml").write_text(manifests["ConfigMap/recsys-nightly"]["data"]["nightly.yaml"])
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Settings, as_group=False)
    settings = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "nightly.yaml")]))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    for path in (str(settings.work), settings.registry):
        claim = volumes[mounts[path]]["persistentVolumeClaim"]["claimName"]
        assert f"PersistentVolumeClaim/{claim}" in manifests
    command, flag, config = container["args"]
    assert (command, flag) == ("nightly", "--config")
    folder, name = os.path.split(config)
    assert name in manifests["ConfigMap/" + volumes[mounts[folder]]["configMap"]["name"]]["data"]


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")


def test_the_image_is_the_one_that_kubernetes_runs(pod):
    (container,) = pod["containers"]
    tag = f"recsys:{recsys.__version__}"
    assert container["image"] == tag
    assert dockerfile().startswith(f"# docker build --file deploy/Dockerfile --tag {tag} .\n")
    assert re.findall(r"^ENTRYPOINT (.*)$", dockerfile(), flags=re.M) == ['["recsys"]']
    assert "command" not in container
    (user,) = re.findall(r"^USER (.*)$", dockerfile(), flags=re.M)
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    (home,) = re.findall(r" HOME=(\S+)", dockerfile())
    assert home in {mount["mountPath"] for mount in container["volumeMounts"]}, "nothing else can be written"


def test_what_the_image_copies_is_enough_to_install_from(tmp_path):
    """Docker's daemon is rarely where tests run, so its build is done by hand up to what comes from elsewhere."""
    copied = [word for line in re.findall(r"^COPY ([^-].*)$", dockerfile(), flags=re.M) for word in line.split()[:-1]]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert set(ignored) == {"*", "**/__pycache__"} | {f"!{name}" for name in copied}
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    data = {"recsys/nightly/verdict.html.j2", *(str(file.relative_to(ROOT)) for file in ROOT.glob("serve/ui/*.*"))}
    assert data <= packed
    assert "recsys/nightly/job.py" in packed


@requires["docker"]
def test_docker_finds_nothing_in_the_dockerfile():
    check = ["docker", "build", "--check", "--file", str(DEPLOY / "Dockerfile"), str(ROOT)]
    ran = subprocess.run(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if re.search("unknown flag|Cannot connect|buildx", ran.stdout):
        pytest.skip("needs docker with buildx and a daemon to check a Dockerfile")
    assert ran.returncode == 0, ran.stdout


RAY_STUB = """#!/bin/sh
echo "asked: $*"
case "$3" in
    */refused.yaml) echo '{"outcome": "refused"}'; exit 3;;
    */endless.yaml) echo begun; exec sleep 600;;
    *) echo '{"outcome": "promoted"}';;
esac
"""


def wait_for(done: Callable[[], object], what: str, patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.5)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])


class RayCluster:
    """One node, with a stub in place of `recsys`.

    Args:
        folder: where all of its files go.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "recsys").write_text(RAY_STUB)
        (folder / "recsys").chmod(0o755)
        port = free_port()
        self.address, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(32)
        self.environment = os.environ | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off keeps Ray's servers to loopback on Linux, too
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "120000",
        }
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--temp-dir={folder}/ray"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        command += ["--port=0", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"]
        command += ["--num-cpus=4", "--object-store-memory=100000000"]
        command += ["--include-log-monitor=false"]
        for _ in range(2):  # on a machine that is busy otherwise, Ray may not wait long enough for itself
            with open(folder / "log", "wb") as log:
                self.head = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
            wait_for(lambda: self.head.poll() is not None or "--block" in (folder / "log").read_text(), "Ray")
            if self.head.poll() is None:
                return
        raise RuntimeError(f"Ray did not start: {(folder / 'log').read_text()}")

    def jobs(self) -> dict[str, str] | None:
        """The status of each job, by what it ran; None while the cluster does not answer."""
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return {job["entrypoint"]: job["status"] for job in json.load(answer)}
        except OSError:
            return None

    def submit(self, config: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(DEPLOY / "ray/nightly_job.py"), "--config", config]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    with own_folder() as folder:
        cluster = RayCluster(folder)
        yield cluster
        cluster.head.terminate()  # which ends all that it started
        cluster.head.wait(60)
        wait_for(lambda: not processes_of(folder), "the end of Ray's processes", 30)


@pytest.mark.timeout(600)
def test_ray_ends_with_the_jobs_own_code(ray_cluster):
    """Three at once, since each takes Ray some ten seconds; the last one is stopped halfway."""
    promoted, refused, endless = map(ray_cluster.submit, ("/a/good.yaml", "/a b/refused.yaml", "/a/endless.yaml"))
    said, complaints = promoted.communicate(timeout=200)
    assert promoted.returncode == 0, complaints
    # Not at its end: on a busy machine Ray writes a line of its own after it.
    assert 'asked: nightly --config /a/good.yaml\n{"outcome": "promoted"}\n' in said
    said, complaints = refused.communicate(timeout=200)
    assert refused.returncode == 3
    assert 'asked: nightly --config /a b/refused.yaml\n{"outcome": "refused"}\n' in said
    assert complaints.endswith(" FAILED: Job entrypoint command failed with exit code 3\n")
    while line := endless.stdout.readline():
        if line == "begun\n":
            break
    endless.send_signal(signal.SIGTERM)
    endless.communicate(timeout=60)
    assert endless.returncode == 128 + signal.SIGTERM
    command = "recsys nightly --config"
    ended = {f"{command} /a/good.yaml": "SUCCEEDED", f"{command} '/a b/refused.yaml'": "FAILED"}
    wait_for(lambda: ray_cluster.jobs() == ended | {f"{command} /a/endless.yaml": "STOPPED"}, "the job's end", 30)
