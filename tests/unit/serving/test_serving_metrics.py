"""The metrics page: clean by Prometheus' own rules, and it says what the process is and how long answers take."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from helpers.promlint import problems

from fedstill.cloud_server.serving.app.build_info import build_info
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics

BATCH = RanBatch(100.0, "-10", {"cats": 2}, 0.020, 0.025, (0.001, 0.2), 7, 1, 0.0004)


def used() -> ServingMetrics:
    """After an event of every kind."""
    metrics = ServingMetrics("fedstill", lambda: 3, lambda: ("cats", 'do"gs\\'), build_info())
    for task in ("cats", 'do"gs\\', "strange"):
        metrics.offered(task, 0.5, 2)
        metrics.dropped(task, "overload", 1)
        metrics.answered(task, 0.5, (0.9,), late=False)
        metrics.took(task, 0.03)
    metrics.limited("shop", 2, True)
    metrics.limited("shop", 2, False)
    metrics.ran(BATCH)
    metrics.ran(replace(BATCH, schedule="0"))
    return metrics


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, series
    return float(found[1])


def test_the_page_is_clean_before_and_after_the_first_request() -> None:
    assert problems(ServingMetrics("fedstill").text().decode()) == []
    assert problems(used().text().decode()) == []


def test_it_says_what_the_process_is() -> None:
    text = used().text().decode()
    (line,) = re.findall(r"^fedstill_serving_build_info\{(.*)\} 1\.0$", text, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    assert labels.keys() == {"policy", "version", "python", "torch", "cpu", "threads"}
    assert labels["policy"] == "fedstill"
    assert int(labels["threads"]) >= 1
    assert all(labels.values())
    started = value(text, "process_start_time_seconds")
    assert time.time() - 86_400 < started <= time.time()
    assert value(text, "process_resident_memory_bytes") > 2**20
    assert value(text, "process_open_fds") > 0


def test_latency_is_by_task_and_clients_cannot_make_more_labels() -> None:
    text = used().text().decode()
    assert value(text, 'fedstill_serving_latency_seconds_count{task="cats"}') == 1
    assert value(text, 'fedstill_serving_latency_seconds_sum{task="cats"}') == pytest.approx(0.03)
    assert value(text, 'fedstill_serving_latency_seconds_bucket{le="0.02",task="cats"}') == 0
    assert value(text, 'fedstill_serving_latency_seconds_bucket{le="0.05",task="cats"}') == 1
    assert "strange" not in text
    assert value(text, 'fedstill_serving_limited_queries_total{node="shop",taken="false"}') == 2


GOOD = "# HELP a_total Some.\n# TYPE a_total counter\na_total 1.0\n"


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (GOOD.replace("_total", "_hits"), "_total is the end of counters"),
        (GOOD.replace("counter", "gauge"), "_total is the end of counters"),
        (GOOD.replace("Some.", ""), "HELP is empty"),
        (GOOD.replace("# HELP a_total Some.\n", ""), "without HELP and TYPE"),
        (GOOD.replace("# TYPE a_total counter\n", ""), "without HELP and TYPE"),
        (GOOD.replace("a_total", "aB_total"), "not in lower case"),
        (GOOD.replace("a_total", "a_ms_total"), "not in seconds"),
        (GOOD.replace("a_total", "a_counter_total"), "its type is part of its name"),
        (GOOD.replace("a_total 1.0", 'a_total{le="1"} 1.0'), "le and quantile belong"),
        (GOOD.replace("a_total 1.0", 'a_total{aB="1"} 1.0'), "is camelCase"),
        (GOOD.replace("a_total 1.0", 'a_total{a="b"c"} 1.0'), "labels"),
        (GOOD.replace("a_total 1.0", "a_total 1.0 soon"), "no sample"),
        (GOOD + "a_total 2.0\n", "twice"),
        (GOOD + "other 2.0\n", "without HELP and TYPE"),
        (GOOD + GOOD.replace("a_total", "b_total") + GOOD, "not together"),
        (GOOD[:-1], "no line end"),
        (
            '# HELP h_seconds Some.\n# TYPE h_seconds histogram\nh_seconds_bucket{le="1"} 3\n'
            'h_seconds_bucket{le="+Inf"} 2\nh_seconds_sum 1\nh_seconds_count 2\n',
            "buckets do not add up",
        ),
    ],
)
def test_the_linter_sees_each_problem(page: str, problem: str) -> None:
    assert problems(GOOD) == []
    assert any(problem in line for line in problems(page)), problems(page)
