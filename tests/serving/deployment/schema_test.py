"""Each deployment file against its schema."""

import copy
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml


def strict(properties, required=()):
    return {
        "type": "object", "properties": properties, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


def array(items, least=1):
    return {"type": "array", "items": items, "minItems": least}


STRING, TEXT, WHOLE = {"type": "string", "minLength": 1}, {"type": "string"}, {"type": "integer"}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
LABEL = {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}

PROMETHEUS = strict(
    {
        "global": strict({"scrape_interval": DURATION}),
        "scrape_configs": array(
            strict(
                {
                    "job_name": STRING,
                    "metrics_path": {"type": "string", "pattern": "^/"},
                    "scrape_interval": DURATION,
                    "static_configs": array(
                        strict(
                            {"targets": array({"type": "string", "pattern": r"^[\w.-]+:\d+$"})},
                            ["targets"],
                        )
                    ),
                    "kubernetes_sd_configs": array(
                        strict(
                            {"role": {"enum": ["pod", "service", "endpoints", "node"]}}, ["role"]
                        )
                    ),
                    "relabel_configs": array(
                        strict(
                            {
                                "source_labels": array(LABEL),
                                "regex": STRING,
                                "action": {"enum": ["keep", "drop", "replace"]},
                                "target_label": LABEL,
                                "replacement": TEXT,
                            },
                            ["source_labels"],
                        )
                    ),
                },
                ["job_name"],
            )
        ),
    },
    ["scrape_configs"],
)

ADAPTER_RULES = strict(
    {
        "rules": array(
            strict(
                {
                    "seriesQuery": STRING,
                    "resources": strict(
                        {
                            "overrides": {
                                "type": "object",
                                "propertyNames": LABEL,
                                "additionalProperties": strict(
                                    {"resource": STRING, "group": TEXT}, ["resource"]
                                ),
                            }
                        },
                        ["overrides"],
                    ),
                    "name": strict({"matches": STRING, "as": LABEL}, ["as"]),
                    "metricsQuery": STRING,
                },
                ["seriesQuery", "resources", "metricsQuery"],
            )
        )
    },
    ["rules"],
)

KUSTOMIZE = strict(
    {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "resources": array(STRING),
        "configMapGenerator": array(
            strict({"name": STRING, "files": array(STRING)}, ["name", "files"])
        ),
        "generatorOptions": strict({"disableNameSuffixHash": {"type": "boolean"}}),
    },
    ["apiVersion", "kind", "resources"],
)

GRAFANA_SOURCE = strict(
    {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}}, ["type", "uid"]
)
GRAFANA = strict(
    {
        "title": STRING, "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "tags": array(STRING), "schemaVersion": {"type": "integer", "minimum": 36},
        "version": WHOLE, "editable": {"type": "boolean"}, "graphTooltip": {"enum": [0, 1, 2]},
        "refresh": DURATION, "timezone": {"enum": ["browser", "utc", ""]},
        "time": strict({"from": STRING, "to": STRING}, ["from", "to"]),
        "annotations": strict({"list": array({}, 0)}, ["list"]), "links": array({}, 0),
        "templating": strict(
            {
                "list": array(
                    strict(
                        {
                            "name": LABEL, "label": STRING,
                            "type": {"enum": ["datasource", "query"]},
                            "datasource": GRAFANA_SOURCE, "definition": STRING,
                            "query": {
                                "anyOf": [STRING, strict({"query": STRING, "refId": STRING}, ["query"])]
                            },
                            "multi": {"type": "boolean"}, "includeAll": {"type": "boolean"},
                            "allValue": STRING, "current": {"type": "object"},
                            "refresh": {"enum": [0, 1, 2]}, "sort": WHOLE,
                        },
                        ["name", "type", "query"],
                    )
                )
            },
            ["list"],
        ),
        "panels": array(
            strict(
                {
                    "id": WHOLE, "type": {"enum": ["timeseries", "stat", "table"]},
                    "title": STRING, "description": STRING, "datasource": GRAFANA_SOURCE,
                    "gridPos": strict(
                        {
                            "x": {"type": "integer", "minimum": 0}, "y": {"type": "integer", "minimum": 0},
                            "w": {"type": "integer", "minimum": 1, "maximum": 24},
                            "h": {"type": "integer", "minimum": 1},
                        },
                        ["x", "y", "w", "h"],
                    ),
                    "fieldConfig": strict(
                        {
                            "defaults": strict(
                                {"unit": {"enum": ["reqps", "s", "short"]}, "min": WHOLE}, ["unit"]
                            ),
                            "overrides": array({}, 0),
                        },
                        ["defaults", "overrides"],
                    ),
                    "options": {"type": "object"},
                    "targets": array(
                        strict(
                            {
                                "refId": {"type": "string", "pattern": "^[A-Z]$"},
                                "datasource": GRAFANA_SOURCE, "expr": STRING, "legendFormat": STRING,
                            },
                            ["refId", "expr"],
                        )
                    ),
                },
                ["id", "type", "title", "gridPos", "targets"],
            )
        ),
    },
    ["title", "schemaVersion", "panels", "templating", "time"],
)  # fmt: skip

# Grafana's provisioning files, which docker-compose.yml contains.
PROVISIONING = strict(
    {
        "apiVersion": {"const": 1},
        "datasources": array(
            strict(
                {
                    "name": STRING, "type": {"const": "prometheus"}, "isDefault": {"type": "boolean"},
                    "access": {"enum": ["proxy", "direct"]}, "url": STRING,
                },
                ["name", "type", "access", "url"],
            )
        ),
        "providers": array(
            strict(
                {"name": STRING, "type": {"const": "file"}, "options": strict({"path": STRING}, ["path"])},
                ["name", "type", "options"],
            )
        ),
    },
    ["apiVersion"],
)  # fmt: skip

SCHEMAS = {
    "prometheus.yml": PROMETHEUS,
    "prometheus_kubernetes.yml": PROMETHEUS,
    "prometheus_adapter.yaml": ADAPTER_RULES,
    "kustomization.yaml": KUSTOMIZE,
    "grafana_dashboard.json": GRAFANA,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_match_their_schema(name, serving_files):
    jsonschema.validate(serving_files.load(name), SCHEMAS[name])  # JSON is YAML, too


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_reject_misspelled_keys(name, serving_files):
    def misspelled(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            if isinstance(value, dict):
                yield {(k + "x" if k == key else k): v for k, v in value.items()}
            if isinstance(item, dict | list) and key not in ("options", "current", "overrides"):
                for changed in misspelled(item):
                    other = copy.copy(value)
                    other[key] = changed
                    yield other

    content = serving_files.load(name)
    if "panels" in content:
        content["panels"] = content["panels"][:1]
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    assert validator.is_valid(content)
    changed = list(misspelled(content))
    assert len(changed) >= 5
    assert not any(map(validator.is_valid, changed))


def compose_errors(path):
    """Returns the errors of the Compose specification that check-jsonschema ships."""
    process = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process.stdout + process.stderr if process.returncode else ""


def test_compose_matches_the_compose_specification(tmp_path, serving_files):
    assert not compose_errors(serving_files.folder / "docker-compose.yml")
    changed = tmp_path / "docker-compose.yml"
    text = (serving_files.folder / "docker-compose.yml").read_text()
    changed.write_text(text.replace("start_period:", "start_periodd:"))
    assert "start_periodd" in compose_errors(changed)
    for content in serving_files.compose["configs"].values():
        jsonschema.validate(yaml.safe_load(content["content"]), PROVISIONING)


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_kubernetes_manifests_match_their_schema(version, serving_files):
    documents = list(yaml.safe_load_all((serving_files.folder / "kubernetes.yaml").read_text()))
    assert sorted(d["kind"] for d in documents) == [
        "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Service",
    ]  # fmt: skip
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    broken = copy.deepcopy(documents[0])
    broken["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)
