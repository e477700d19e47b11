"""Dashboard, autoscaler and embedded server use metrics that TensorFlow Serving exports."""

import json
import re
from pathlib import Path

import grpc
import promql_parser
import pytest
from doc_pages import PAGES, blocks

from keras_ssl.serving.server.metrics import Metrics

DASHBOARD = Path(__file__).parents[3] / "serving" / "grafana_dashboard.json"


def dashboard_queries():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m").replace("$model", "m")
            yield pytest.param(query, panel["fieldConfig"]["defaults"]["unit"], id=panel["title"])


@pytest.mark.parametrize(("query", "unit"), dashboard_queries())
def test_dashboard_queries_use_metrics_that_exist(query, unit, check_query):
    check_query(query)
    # Microseconds are converted to seconds, also in the number of waiting requests, which is the time
    # waited per second.
    assert ("latency" in query) == query.endswith("/ 1e6")
    assert unit != "s" or "latency" in query
    assert ("histogram_quantile" in query) == ("_bucket" in query)


def test_queries_of_metrics_that_do_not_exist_are_detected(check_query):
    for query in (
        "rate(:tensorflow:serving:requests[5m])",
        "rate(:tensorflow:serving:request_latency[5m])",
        "rate(:tensorflow:serving:request_count_bucket[5m])",
        'rate(:tensorflow:serving:request_count{code="OK"}[5m])',
        "sum by (entrypoint) (rate(:tensorflow:serving:request_count[5m]))",
    ):
        with pytest.raises(AssertionError):
            check_query(query)


def test_dashboard_variables_panels_and_legends_are_consistent(serving_files, metrics):
    variables = {v["name"] for v in serving_files.dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(serving_files.dashboard["panels"])))
    assert used == variables
    (model,) = [v for v in serving_files.dashboard["templating"]["list"] if v["name"] == "model"]
    metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", model["definition"]).groups()
    assert label in metrics[metric][0]
    assert model["query"]["query"] == model["definition"]
    ids = [panel["id"] for panel in serving_files.dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in serving_files.dashboard["panels"]:
        p = panel["gridPos"]
        assert p["x"] + p["w"] <= 24
        place = {
            (x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])
        }
        assert not cells & place, panel["title"]
        cells |= place
        for target in panel["targets"]:
            for name in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{name}\b", target["expr"]), target


def test_the_autoscaler_uses_the_metric_of_the_adapter(serving_files, check_query):
    (rule,) = serving_files.adapter["rules"]
    (metric,) = serving_files.kubernetes("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = promql_parser.parse(rule["seriesQuery"])
    check_query(rule["seriesQuery"])
    assert re.fullmatch(rule["name"]["matches"], series.name)
    query = rule["metricsQuery"]
    for template, value in (
        ("<<.Series>>", series.name),
        ("<<.LabelMatchers>>", 'pod=~"a|b",namespace="n"'),
        ("<<.GroupBy>>", "pod"),
    ):
        assert template in query
        query = query.replace(template, value)
    check_query(query)
    # The labels by which the adapter finds the pod are set by the scrape job.
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    made = {
        r.get("target_label")
        for r in serving_files.scrape_configs["prometheus_kubernetes.yml"]["relabel_configs"]
    }
    assert {"namespace", "pod"} <= made
    # The metric exists only with batching.
    assert serving_files.flags(serving_files.container["args"])["enable_batching"] == "true"


def test_the_query_in_the_documentation(check_query):
    texts = [block.text for block in blocks(PAGES["docs/operations.md"].read_text())]
    (query,) = [text for text in texts if text.startswith(":tensorflow:")]
    check_query(query)


def test_the_embedded_server_exports_the_same_metrics(serving_files, check_query):
    """At least those that the autoscaler uses, with the same names and labels."""
    metrics = Metrics()
    metrics.count("m", grpc.StatusCode.OK)
    metrics.request("m", "Predict", "GRPC", 0.1)
    metrics.runtime("m", "Predict", 0.1)
    metrics.queued(0.1)
    metrics.load_attempts = {("/models/m/1", "fail"): 1}
    series = set()
    for line in metrics.page().decode().splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"([\w:]+){(.*)}", line).groups()
            check_query(f"{name}{{{labels}}}")
            series.add(name)
    assert promql_parser.parse(serving_files.adapter["rules"][0]["seriesQuery"]).name in series
