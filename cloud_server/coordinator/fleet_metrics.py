"""A fleet as Prometheus sees it: read from the coordinator's folder at every scrape, as ``status`` reads it."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cryptography.x509 import Certificate
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fedstill.cloud_server.auth.authority_files import read_roots, read_server
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.cloud_server.journal.visit import DONE
from fedstill.common.credentials import CredentialError, valid_until
from fedstill.common.errors import RunError, UserError
from fedstill.common.run_layout import STATUS_FILE

LOG = logging.getLogger(__name__)

LINKS = ("online", "late", "offline", "never online", "revoked", "unknown")


class FleetCollector(Collector):
    """Asked by the metrics server, from its thread.

    Args:
        state: the coordinator's folder.
        authority: folder of ``fedstill certs init``; None without one.
    """

    def __init__(self, state: Path, authority: Path | None) -> None:
        self._state, self._authority = state, authority

    def describe(self) -> Iterable[Metric]:
        """Nothing: at registration there may be no journal yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families; of a folder that cannot be read only that it cannot."""
        try:
            fleet = read_fleet(self._state)
        except (UserError, RunError) as error:
            LOG.warning("event=metrics_failed reason=%s", json.dumps(str(error)))
            yield GaugeMetricFamily("fedstill_fleet_readable", "1 if the fleet's state can be read.", 0)
            return
        yield GaugeMetricFamily("fedstill_fleet_readable", "1 if the fleet's state can be read.", 1)
        yield GaugeMetricFamily(
            "fedstill_teacher_number", "Of the present teacher, from 1.", fleet["teacher"]["number"]
        )
        yield from _of_devices(fleet["devices"], fleet["teacher"]["number"])
        yield GaugeMetricFamily(
            "fedstill_run_failures", "Failures of the run since it last went well.", _failures(self._state)
        )
        yield GaugeMetricFamily(
            "fedstill_state_free_bytes",
            "Free space on the state folder's disk.",
            shutil.disk_usage(self._state).free,
        )
        yield from self._expiries()

    def _expiries(self) -> Iterator[Metric]:
        ends = GaugeMetricFamily(
            "fedstill_certificate_expiry_timestamp_seconds",
            "When a certificate expires.",
            labels=["certificate"],
        )
        for name, read in (("authority", _issuing_root), ("server", read_server)):
            if self._authority is not None:
                try:
                    ends.add_metric([name], valid_until(read(self._authority)))
                except CredentialError:
                    continue  # being replaced at this moment, or damaged, of which the log speaks
        if ends.samples:
            yield ends


def _issuing_root(folder: Path) -> Certificate:
    return read_roots(folder).issuing


def _of_devices(devices: list[dict[str, Any]], teacher: int) -> Iterator[Metric]:
    counts = Counter(row["link"] for row in devices)
    links = GaugeMetricFamily("fedstill_devices", "Devices by link.", labels=["link"])
    for link in LINKS:
        links.add_metric([link.replace(" ", "_")], counts[link])
    yield links
    up = GaugeMetricFamily("fedstill_device_up", "1 if the device is online.", labels=["device"])
    served = GaugeMetricFamily(
        "fedstill_device_served", "1 if the device uses the newest student meant for it.", labels=["device"]
    )
    failed = GaugeMetricFamily(
        "fedstill_device_failed_attempts", "Attempts in a row that gave it no student.", labels=["device"]
    )
    again = GaugeMetricFamily(
        "fedstill_device_next_attempt_timestamp_seconds", "When it is tried again.", labels=["device"]
    )
    seen = GaugeMetricFamily(
        "fedstill_device_last_seen_timestamp_seconds", "When the device was last online.", labels=["device"]
    )
    expected = GaugeMetricFamily(
        "fedstill_device_expected_accuracy_ratio", "Estimated without a label.", labels=["device"]
    )
    received = CounterMetricFamily(
        "fedstill_received_bytes", "From the device, content only.", labels=["device"]
    )
    sent = CounterMetricFamily("fedstill_sent_bytes", "To the device, content only.", labels=["device"])
    wire_received = CounterMetricFamily(
        "fedstill_wire_received_bytes", "From the device through the proxy, with headers.", labels=["device"]
    )
    wire_sent = CounterMetricFamily(
        "fedstill_wire_sent_bytes", "To the device through the proxy, with headers.", labels=["device"]
    )
    students = InfoMetricFamily("fedstill_device_student", "What the device uses.", labels=["device"])
    for row in devices:
        name, visit, choice = [row["name"] or f"client-{row['client']}"], row["visit"], row["choice"]
        if row["link"] == "revoked":
            continue
        up.add_metric(name, row["link"] == "online")
        served.add_metric(name, bool(visit and visit["outcome"] in DONE and visit["teacher"] == teacher))
        failed.add_metric(name, visit["attempts"] if visit else 0)
        if row["next_attempt"] is not None:
            again.add_metric(name, row["next_attempt"])
        if row["seen"] is not None:
            seen.add_metric(name, row["seen"])
        if choice and choice.get("estimate") is not None:
            expected.add_metric(name, choice["estimate"])
        received.add_metric(name, row["up_bytes"] or 0)
        sent.add_metric(name, row["down_bytes"] or 0)
        if row["wire_up_bytes"] is not None:
            wire_received.add_metric(name, row["wire_up_bytes"])
            wire_sent.add_metric(name, row["wire_down_bytes"])
        if visit and visit["student"]:
            students.add_metric(name, {"version": visit["student"][:12]})
    yield from (up, served, failed, again, seen, expected, received, sent, wire_received, wire_sent, students)


def _failures(state: Path) -> int:
    try:
        return int(json.loads((state / STATUS_FILE).read_text())["failures"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0
