"""The network policies let through the calls that the code makes, and no others."""

import re
from typing import Any

import pytest

from cra.shared.settings import Settings
from tests.manifests import K8S, NAME, OVERLAYS, container, of_kind, pods, raw_files
from tests.servers import ROOT

PORTS = {
    name: Settings.model_fields[f"{name}_port"].default
    for name in ("gateway", "embedding", "ingest")
}
DATA = {"store": 8333, "milvus": 19530, "redis": 6379}
"""What lies in another namespace, by the ports of its charts' values."""

SIGNS = {
    r"RemoteEncoder\.of\(": "embedding",
    r"MilvusVectorStore\(": "milvus",
    r"S3(Object|Release)Store\(": "store",
    r"Ledger\(|create_app\(settings\)": "redis",
    r"SearchClient\.of\(": "gateway",
    r"IngestClient\(settings\)": "ingest",
}
"""By what is made where a service is wired, what it calls."""

WIRING = {
    "gateway": ["gateway/__main__.py"],
    "embedding": ["embedding/__main__.py"],
    "ingest": ["ingest/__main__.py"],
    "worker": ["ingest/worker.py"],
    "web": ["web/backends.py"],
}
CALLS = {
    name: {
        target
        for file in files
        for sign, target in SIGNS.items()
        if re.search(sign, (ROOT / "services" / file).read_text())
    }
    for name, files in WIRING.items()
}
# It signs URLs, which asks nobody.
CALLS["gateway"] -= {"store"}
CALLS |= {
    # They keep time and put a task in line: of worker.py's parts, the ledger and the broker.
    "beat": {"redis"},
    "reconcile": {"redis"},
    "training": {"store"},
}


def ports_out(policy: dict[str, Any]) -> dict[str, int]:
    """Return the ports of a policy's way out, by where to."""
    found: dict[str, int] = {}
    for rule in policy["spec"].get("egress", ()):
        (port,) = rule["ports"]
        for peer in rule["to"]:
            if "podSelector" in peer:
                found[peer["podSelector"]["matchLabels"][NAME]] = port["port"]
            else:
                assert peer["namespaceSelector"]["matchLabels"] == {
                    "kubernetes.io/metadata.name": "cra-data"
                }
                found[{number: name for name, number in DATA.items()}[port["port"]]] = port["port"]
    return found


def callers(policy: dict[str, Any]) -> dict[int, set[str]]:
    """Return who of ours, or of which namespaces, may call, by port."""
    found: dict[int, set[str]] = {}
    for rule in policy["spec"].get("ingress", ()):
        (port,) = rule["ports"]
        for peer in rule["from"]:
            selector = peer.get("podSelector") or peer["namespaceSelector"]
            names = {f"{key}={value}" if "namespaceSelector" in peer else value
                     for key, value in selector.get("matchLabels", {}).items()}  # fmt: skip
            for one in selector.get("matchExpressions", ()):
                assert (one["key"], one["operator"]) == (NAME, "In")
                names |= set(one["values"])
            assert names
            found.setdefault(port["port"], set()).update(names)
    return found


def test_the_code_is_read() -> None:
    """The wiring shows what each service calls; a service that calls nobody would be a mistake."""
    assert CALLS["worker"] == CALLS["ingest"] == {"embedding", "milvus", "store", "redis"}
    assert CALLS["gateway"] == {"embedding", "milvus"}
    assert CALLS["embedding"] == {"store"}
    assert CALLS["web"] == {"gateway", "ingest", "embedding", "store"}
    # What lets the gateway do without a way to the store.
    engine = (ROOT / "services" / "gateway" / "search.py").read_text()
    assert set(re.findall(r"_objects\.(\w+)", engine)) == {"signed_url"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_passes_that_is_not_named(overlay: str) -> None:
    """Both ways are shut for every pod, save for names; each workload has one policy.

    Break: drop Egress from `default-deny`, or a policy.
    """
    policies = of_kind(overlay, "NetworkPolicy")
    deny = policies.pop("default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    names = policies.pop("names")["spec"]
    assert names["podSelector"] == {}
    assert {port["port"] for rule in names["egress"] for port in rule["ports"]} == {53}
    assert set(policies) == set(pods(overlay))
    for policy in policies.values():
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize(
    ("overlay", "name"), [(overlay, name) for overlay in OVERLAYS for name in pods(overlay)]
)
def test_a_service_reaches_what_it_calls(overlay: str, name: str) -> None:
    """Exactly the hops that the code makes, at both ends and by the right port.

    Break: take milvus from the worker, give the gateway the store, or change a port.
    """
    policies = of_kind(overlay, "NetworkPolicy")
    out = ports_out(policies[name])
    assert set(out) == CALLS[name]
    for target, port in out.items():
        assert port == (PORTS | DATA)[target]
        if target in PORTS:
            assert name in callers(policies[target])[port]
    for number, whose in callers(policies[name]).items():
        for caller in whose & set(CALLS):
            assert name in CALLS[caller], f"{caller} does not call {name}"
        ports = {port["containerPort"] for port in container(pods(overlay)[name])["ports"]}
        assert number in ports


def test_the_ports_are_those_of_settings_and_charts() -> None:
    """What the services are told to call lies where the policies lead.

    Break: CRA_S3_ENDPOINT=seaweedfs-s3.cra-data:9000.
    """
    env = (K8S / "base" / "cra.env").read_text()
    assert f"CRA_S3_ENDPOINT=seaweedfs-s3.cra-data:{DATA['store']}\n" in env
    assert f"CRA_MILVUS_URI=http://milvus.cra-data:{DATA['milvus']}\n" in env
    (scaled,) = of_kind("cpu", "ScaledObject").values()
    assert scaled["spec"]["triggers"][0]["metadata"]["address"] == f"redis.cra-data:{DATA['redis']}"
    assert f"port: {DATA['store']}\n" in (K8S / "charts" / "seaweedfs.yaml").read_text()
    events = of_kind("cpu", "Service")["events"]["spec"]["ports"][0]["port"]
    assert events == Settings.model_fields["events_port"].default
    assert f"http://events.cra:{events}/events" in (K8S / "charts" / "seaweedfs.yaml").read_text()
    assert callers(of_kind("cpu", "NetworkPolicy")["ingest"])[events] == {
        "kubernetes.io/metadata.name=cra-data"
    }


def test_what_cra_stands_on_is_called_by_cra_alone() -> None:
    """Milvus asks for no password: its namespace lets in those who have a reason, by their ports.

    Break: drop KEDA's rule, or its ports from that of `cra`.
    """
    (policy,) = [one for file, one in raw_files() if file == K8S / "charts" / "network.yaml"]
    assert policy["metadata"]["namespace"] == "cra-data"
    assert policy["spec"]["podSelector"] == {}
    assert "Ingress" in policy["spec"]["policyTypes"]
    inside, *rules = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    allowed = {}
    for rule in rules:
        (peer,) = rule["from"]
        ((label, value),) = peer["namespaceSelector"]["matchLabels"].items()
        allowed[f"{label}={value}"] = {port["port"] for port in rule["ports"]}
    (namespace,) = of_kind("cpu", "Namespace")
    assert allowed == {
        f"kubernetes.io/metadata.name={namespace}": set(DATA.values()),
        "kubernetes.io/metadata.name=keda": {DATA["redis"]},
        "cra.dev/clients=true": {DATA["store"]},
        "cra.dev/monitoring=true": {9091},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_can_be_read(overlay: str) -> None:
    """Each service that has metrics has a port of that name, which monitoring may call.

    Break: drop 9105 from the web's policy, or its port `metrics`.
    """
    measured = {
        name.removesuffix("_metrics_port"): field.default
        for name, field in Settings.model_fields.items()
        if name.endswith("_metrics_port")
    }
    assert {"gateway", "web"} <= set(measured)
    policies = of_kind(overlay, "NetworkPolicy")
    for name, port in measured.items():
        ports = container(pods(overlay)[name])["ports"]
        assert {"name": "metrics", "containerPort": port} in ports
        assert callers(policies[name])[port] == {"cra.dev/monitoring=true"}
