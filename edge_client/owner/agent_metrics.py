"""A device as Prometheus sees it: read from its folder at every scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fedstill.edge_client.folder import SHELF_FOLDER
from fedstill.edge_client.privacy.upload_log import UploadTail
from fedstill.edge_client.students.pointer import version_in_use


class AgentCollector(Collector):
    """Asked by the metrics server, from its thread.

    Args:
        folder: the device's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._in_fleet = folder, False
        self._tail = UploadTail(folder)
        self._answers = self._bytes = 0

    def tell(self, in_fleet: bool) -> None:
        """Whether the node is in the fleet; called about once a second."""
        self._in_fleet = in_fleet

    def describe(self) -> Iterable[Metric]:
        """Nothing: the folder may not exist yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for one in self._tail.new():
            self._answers, self._bytes = self._answers + 1, self._bytes + one.bytes
        version = version_in_use(self._folder / SHELF_FOLDER)
        yield GaugeMetricFamily("fedstill_agent_in_fleet", "1 if the coordinator accepts it.", self._in_fleet)
        yield GaugeMetricFamily(
            "fedstill_agent_has_student", "1 if it can answer clips by itself.", bool(version)
        )
        yield CounterMetricFamily("fedstill_agent_answers", "Answers to the cloud.", self._answers)
        yield CounterMetricFamily(
            "fedstill_agent_sent_bytes",
            "Their content, as the upload log counts it.",
            self._bytes,
        )
        if version:
            student = InfoMetricFamily("fedstill_agent_student", "What it uses.")
            student.add_metric([], {"version": version[:12]})
            yield student
