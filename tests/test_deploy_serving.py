"""What runs and watches the service: manifests under their schemas, queries under Prometheus's grammar."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import promql_parser
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import recsys
from serve import ingress
from serve.app import build
from serve.metrics import ADDRESS, FAMILIES, FOLDER
from serve.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CRD = "RECSYS_TEST_RAYSERVICE_CRD"
VERSIONS = ["1.31", kubernetes_validate.latest_version()]

requires = {
    name: pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}, which is not here")
    for name in ("kubectl", "promtool")
}


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """By kind and name."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/serving.yaml").read_text())
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


@pytest.fixture(scope="module")
def service(manifests) -> dict[str, Any]:
    return manifests["RayService/recsys"]["spec"]


@pytest.fixture(scope="module")
def cluster(service) -> dict[str, Any]:
    return service["rayClusterConfig"]


@pytest.fixture(scope="module")
def pods(cluster) -> dict[str, dict[str, Any]]:
    """The template of the head and of the workers."""
    (worker,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"], "worker": worker["template"]}


def only_container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in only_container(pod)["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_manifests(manifests, pods, version):
    for name, manifest in manifests.items():
        if not name.startswith("RayService/"):
            kubernetes_validate.validate(manifest, version, strict=True)
    for name, pod in pods.items():
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **pod["metadata"]}, "spec": pod["spec"]}
        kubernetes_validate.validate(made, version, strict=True)


def closed(schema: Any) -> Any:
    """A schema under which a name that it does not know is an error; a server would only leave it out."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: closed(value) for key, value in schema.items()}
    if isinstance(said.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        said.setdefault("additionalProperties", False)
    return said


def test_kuberay_takes_the_manifest(manifests):
    """KubeRay's own definition, helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml, is not ours to copy."""
    path = os.environ.get(CRD)
    if not path:
        pytest.skip(f"needs KubeRay's ray.io_rayservices.yaml; {CRD} says where it is")
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in yaml.safe_load(Path(path).read_text())["spec"]["versions"]
        if version["name"] == "v1"
    )
    jsonschema.Draft202012Validator(closed(schema)).validate(manifests["RayService/recsys"])


def test_a_misspelt_name_would_be_noticed():
    schema = closed({"properties": {"spec": {"properties": {"a": {"type": "string"}}}, "metadata": {"type": "object"}}})
    jsonschema.validate({"spec": {"a": "b"}, "metadata": {"name": "c"}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="'b' was unexpected"):
        jsonschema.validate({"spec": {"b": "b"}}, schema)


@requires["kubectl"]
def test_kubectl_reads_the_manifests(manifests):
    """With the anchors in them."""
    path = str(DEPLOY / "kubernetes/serving.yaml")
    command = ["kubectl", "label", "--local", "--filename", path, "a=b", "--output=name"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(ran.stdout.split()) == len(manifests)


@pytest.fixture(scope="module", params=["kubernetes", "ray"])
def config(request, service) -> ServeDeploySchema:
    """What Serve reads, checked as Serve checks it."""
    text = service["serveConfigV2"] if request.param == "kubernetes" else (DEPLOY / "ray/serve.yaml").read_text()
    return ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_serve_and_the_builder_take_the_configuration(config):
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (build.__module__, build.__name__)
    settings = Settings(**application.args)
    deployment = build(settings)._bound_deployment
    assert deployment.num_replicas == settings.replicas == 4
    assert application.args["online"] == "$RECSYS_ONLINE_STORE"
    assert application.route_prefix == "/"
    assert config.http_options.host == "0.0.0.0", "the network policy and the keys say who may ask"


def test_the_first_line_of_each_says_how_to_use_it():
    first = (DEPLOY / "ray/serve.yaml").read_text().splitlines()[0]
    assert first == "# serve deploy deploy/ray/serve.yaml"
    first = (DEPLOY / "kubernetes/serving.yaml").read_text().splitlines()[0]
    assert first == "# kubectl apply --namespace recsys --filename deploy/kubernetes/serving.yaml"


def test_ray_finds_what_the_environment_names(pods):
    for pod in pods.values():
        said = environment(pod)
        module, _, name = said["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
        assert (module, name) == (ingress.middlewares.__module__, ingress.middlewares.__name__)
        assert said["RAY_SERVE_ENABLE_HA_PROXY"] == said["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    named = (DEPLOY / "ray/serve.yaml").read_text()
    for name, value in environment(pods["worker"]).items():
        assert name in ("RAY_LOG_TO_STDERR", "RAY_USAGE_STATS_ENABLED") or f"{name}=" in named
        assert not isinstance(value, str) or name.startswith("RAY_") or f"{name}={value}" in named


def test_every_replica_finds_its_place(cluster, service):
    (worker,) = cluster["workerGroupSpecs"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    places = worker["replicas"] * int(worker["rayStartParams"]["num-cpus"])
    assert places == application["args"]["replicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "a head that answers takes users with it"
    cpus = float(only_container(worker["template"])["resources"]["requests"]["cpu"])
    assert cpus > int(worker["rayStartParams"]["num-cpus"]), "HAProxy and Ray need some, too"


def test_pods_may_do_little(pods):
    for pod in pods.values():
        spec, container = pod["spec"], only_container(pod)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        named = {port["name"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in named


def test_pods_mount_what_the_configuration_names(manifests, service, pods):
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    nightly = yaml.safe_load_all((DEPLOY / "kubernetes/nightly.yaml").read_text())
    claims = {one["metadata"]["name"] for one in nightly if one["kind"] == "PersistentVolumeClaim"}
    for pod in pods.values():
        mounts = {mount["mountPath"]: mount for mount in only_container(pod)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in mounts.values()} == set(volumes)
        registry = mounts[application["args"]["registry"]]
        assert registry["readOnly"] is True
        assert volumes[registry["name"]]["persistentVolumeClaim"]["claimName"] in claims
        folder, name = os.path.split(application["args"]["keys"])
        secret = volumes[mounts[folder]["name"]]["secret"]
        assert name in {item["path"] for item in secret["items"]}
        assert secret["defaultMode"] & 0o022 == 0, "keys that others may write to are refused"
        assert "/tmp" in mounts, "nothing else can be written"
        assert environment(pod)[FOLDER].startswith("/tmp/")


def test_no_secret_stands_in_the_manifest(manifests, service, pods, cluster):
    """Each comes from the one Secret, whose making the head of the file describes."""
    text = (DEPLOY / "kubernetes/serving.yaml").read_text()
    keys = {"keys.json"} | set(re.findall(r"--from-literal=([\w-]+)=", text))
    for pod in pods.values():
        said = environment(pod)["RECSYS_ONLINE_STORE"]["secretKeyRef"]
        assert said["name"] == "recsys-serving"
        assert said["key"] in keys
    said = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert said["key"] in keys
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_labels_find_the_pods(manifests, pods):
    worker = pods["worker"]["metadata"]["labels"]
    for selector in (
        manifests["PodDisruptionBudget/recsys-serving"]["spec"]["selector"]["matchLabels"],
        pods["worker"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= worker.items()
        assert not selector.items() <= pods["head"]["metadata"]["labels"].items()
    policy = manifests["NetworkPolicy/recsys-serving"]["spec"]["podSelector"]["matchLabels"]
    for pod in pods.values():
        assert policy.items() <= pod["metadata"]["labels"].items()


def test_scrapes_reach_the_port_that_replicas_answer_at(manifests, pods):
    port = int(environment(pods["worker"])[ADDRESS].rpartition(":")[2])
    ports = {each["name"]: each["containerPort"] for each in only_container(pods["worker"])["ports"]}
    assert ports["metrics"] == port
    assert pods["worker"]["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    opened = manifests["NetworkPolicy/recsys-serving"]["spec"]["ingress"][0]["ports"]
    assert {each["port"] for each in opened} == {ports["http"], port}
    (kubernetes,) = (
        job
        for job in yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
        if "kubernetes_sd_configs" in job
    )
    component, name = kubernetes["relabel_configs"][0]["regex"].split(";")
    assert pods["worker"]["metadata"]["labels"]["app.kubernetes.io/component"] == component
    assert name in ports


def test_the_image_serves_and_runs_nightly(pods):
    tag = f"recsys:{recsys.__version__}"
    text = (DEPLOY / "Dockerfile").read_text()
    assert text.startswith(f"# docker build --file deploy/Dockerfile --tag {tag} .\n")
    (user,) = re.findall(r"^USER (.*)$", text, flags=re.M)
    for pod in pods.values():
        assert only_container(pod)["image"] == tag
        assert user == f"{pod['spec']['securityContext']['runAsUser']}:{pod['spec']['securityContext']['runAsGroup']}"
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, flags=re.M)
    assert {"redis", "otel"} <= set(extras.split(",")), "what the manifests and settings may ask for"
    (exposed,) = re.findall(r"^EXPOSE (.*)$", text, flags=re.M)
    ports = {each["name"]: str(each["containerPort"]) for each in only_container(pods["worker"])["ports"]}
    assert exposed.split() == [ports["http"], ports["metrics"]]
    import ray

    said = yaml.safe_load((DEPLOY / "kubernetes/serving.yaml").read_text().split("\n---\n")[0])
    assert said["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__, "what constraints.txt puts in the image"


# --- what watches it

SAMPLES = {
    name: each
    for each in FAMILIES
    for name in (
        [f"{each.name}_{end}" for end in ("bucket", "sum", "count")] if each.kind == "histogram" else [each.name]
    )
}
INTERVALS = {"$__rate_interval": "5m", "$job": ".*", "$__all": ".*"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana/serving.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [each for each in dashboard()["panels"] if each["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def filled(expression: str) -> str:
    """As Grafana sends it: its variables given values."""
    for name, value in INTERVALS.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def faults(expression: str) -> list[str]:
    """What is wrong with a query: metrics or labels that we do not have, rates of gauges, brackets."""
    found = []
    bare = re.sub(r'"[^"]*"', '""', expression)
    for opened, end in ("()", "[]", "{}"):
        if bare.count(opened) != bare.count(end):
            found.append(f"{opened} {end} do not pair")
    names = re.findall(r"\brecsys_\w+", bare)
    found += [f"there is no {name}" for name in names if name not in SAMPLES]
    if not names:
        found.append("names no metric")
    for name, matchers in re.findall(r"\b(recsys_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            if name in SAMPLES and label not in (*SAMPLES[name].labels, "job", "le"):
                found.append(f"{name} has no label {label}")
    for grouped in re.findall(r"\bby \(([^)]*)\)", bare):
        for label in filter(None, (each.strip() for each in grouped.split(","))):
            if not any(label in (*SAMPLES[name].labels, "le") for name in names if name in SAMPLES):
                found.append(f"nothing here has a label {label}")
    for function, name in re.findall(r"\b(rate|increase)\((recsys_\w+)", bare):
        if name in SAMPLES and SAMPLES[name].kind == "gauge":
            found.append(f"{function} of the gauge {name}")
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_can_be_answered(where, expression):
    assert faults(filled(expression)) == [], where


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_parses(where, expression):
    promql_parser.parse(filled(expression))


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(recsys_request_total[5m]))", "there is no recsys_request_total"),
        ("recsys_stage_seconds", "there is no recsys_stage_seconds"),
        ('recsys_requests_total{stage="a"}', "recsys_requests_total has no label stage"),
        ("sum by (step) (recsys_requests_total)", "nothing here has a label step"),
        ("rate(recsys_replicas[5m])", "rate of the gauge recsys_replicas"),
        ("sum(recsys_replicas", "( ) do not pair"),
        ("up", "names no metric"),
    ],
)
def test_a_wrong_query_would_be_noticed(expression, fault):
    assert fault in faults(expression)


def test_every_metric_is_shown():
    """On the dashboard or in an alert; one that nobody sees is not worth its counting."""
    named = {name for _, expression in expressions() for name in re.findall(r"\brecsys_\w+", expression)}
    unseen = {each.name for each in FAMILIES} - {SAMPLES[name].name for name in named}
    assert unseen == {"recsys_bundle_info"}, "which is there to be joined with"


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule):
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Recsys\w+", rule["alert"])
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    for text in rule["annotations"].values():
        assert text[0].isupper() or text.startswith("{{")
        assert text.rstrip().endswith(".")


@requires["promtool"]
def test_prometheus_takes_the_rules():
    subprocess.run(["promtool", "check", "rules", DEPLOY / "prometheus/alerts.yaml"], check=True, capture_output=True)


def test_prometheus_is_told_of_the_rules():
    said = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    assert all((DEPLOY / "prometheus" / name).exists() for name in said["rule_files"])


def test_the_dashboard_is_laid_out():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, f"{panel['title']} lies on another"
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}, "whatever yours is called"
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_document_says_what_each_metric_and_alert_is():
    text = (ROOT / "docs/observing.md").read_text()
    for each in FAMILIES:
        assert f"`{each.name}`" in text
    for rule in alerts():
        assert f"`{rule['alert']}`" in text
