"""The conversation of one job with its device: three requests, each about a student.

Only the part of the student that the device does not have yet travels (``downlink.py``). A device that turns out to
lack something gets the same request once more, with the missing part, or after it. The bytes of every usable reply go
into the traffic ledger. During a request, the job gives its compute slot to another job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.cloud_server.distillation.settings import PrototypeSettings
from fedstill.cloud_server.export.graphs import for_older
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.downlink import Downlink, Shipment
from fedstill.cloud_server.federation.exchange import DeviceLacks, WireCost
from fedstill.cloud_server.federation.slots import ComputeSlots
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal, PrivacyGuarantee
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.canaries import Canaries
from fedstill.protos.messages import (
    EvaluationRequest,
    EvaluationResult,
    GraphsRequest,
    GraphsResult,
    InstallRequest,
    InstallResult,
    PrototypeRequest,
    PrototypeUpload,
    StudentGraphs,
    faults_in,
)
from fedstill.protos.releases import is_older

Request = TypeVar("Request", PrototypeRequest, EvaluationRequest, InstallRequest)
Sent = TypeVar("Sent", PrototypeRequest, EvaluationRequest, InstallRequest, GraphsRequest)
Reply = TypeVar("Reply", PrototypeUpload, EvaluationResult, InstallResult, GraphsResult)

NO_COMPRESSOR = np.empty(0, np.uint8)
"""In a request: the features are not compressed."""


@dataclass(frozen=True)
class DeviceSession:
    """See the top of the file. Every method raises DeviceFailure if the device does not answer usefully."""

    key: JobKey
    line: DeviceLine
    downlink: Downlink
    journal: Journal
    slots: ComputeSlots
    graphs: Callable[[], StudentGraphs]

    def request_prototypes(
        self,
        net: AudioVisualNet,
        outer_epoch: int,
        settings: PrototypeSettings,
        *,
        guarantee: PrivacyGuarantee,
        temperature: float,
        centres: npt.NDArray[np.float32],
        card: bool = False,
        coarse: bool = False,
    ) -> PrototypeUpload:
        """The device's prototypes under the student ``net``; see ``PrototypeRequest`` for the arguments."""
        shipment = self.downlink.shipment(net)
        request = PrototypeRequest(
            self.key.at(outer_epoch),
            shipment.student,
            guarantee.kind,
            settings.samples_per_prototype,
            settings.min_size,
            settings.upload_limit,
            temperature,
            guarantee.epsilon,
            guarantee.delta,
            centres,
            card,
            settings.card_share if card and guarantee.kind == "dp" else 0.0,
            coarse,
        )
        return self._ask("query.prototypes", request, shipment, PrototypeUpload)

    def evaluate(
        self,
        net: AudioVisualNet,
        outer_epoch: int,
        *,
        compressor: npt.NDArray[np.uint8] = NO_COMPRESSOR,
        level: str = "",
    ) -> EvaluationResult:
        """How many of its test clips the device classifies correctly; ``level``: the request's ``rung``."""
        shipment = self.downlink.shipment(net)
        request = EvaluationRequest(self.key.at(outer_epoch), shipment.student, compressor, level)
        return self._ask("evaluate.student", request, shipment, EvaluationResult)

    def install(
        self,
        net: AudioVisualNet,
        outer_epoch: int,
        canaries: Canaries,
        compressors: npt.NDArray[np.uint8],
        minimum_agreement: float,
        expected: tuple[float, float, float] | None = None,
    ) -> InstallResult:
        """Have the device install the student; the canary clips travel only if it does not have them.

        Args:
            expected: (accuracy, low, high), which its owner is told; None if nobody can tell. An older device does not
                know the field, and is not told.
        """
        if self.older:
            expected = None

        def ask(count: int) -> InstallResult:
            shipment = self.downlink.shipment(net)
            request = InstallRequest(
                self.key.at(outer_epoch),
                shipment.student,
                canaries.version,
                canaries.audio[:count],
                canaries.frames[:count],
                canaries.teacher[:count],
                compressors,
                minimum_agreement,
                *(expected or ()),
            )
            return self._ask("train.install", request, shipment, InstallResult)

        try:
            return ask(0)
        except DeviceLacks as lack:
            if lack.item != "canaries":
                raise
            return ask(len(canaries.audio))

    def _ask(self, action: str, request: Request, shipment: Shipment, expect: type[Reply]) -> Reply:
        """Ask; once more with the whole student if the device lacks the base of the update, and once more if it lacks
        the graphs to run any."""
        lacked: set[str] = set()
        if request.student.own_statistics and self.older:
            plain = replace(request.student, own_statistics=0.0, least_share=0.0)
            request = replace(request, student=plain)
        while True:
            try:
                reply = self._exchange(action, request, expect)
            except DeviceLacks as lack:
                if lack.item in lacked or lack.item == "canaries":
                    raise
                lacked.add(lack.item)
                if lack.item == "graphs":
                    graphs = for_older(self.graphs()) if self.older else self.graphs()
                    self._exchange("train.graphs", GraphsRequest(request.job, graphs), GraphsResult)
                    continue
                if not shipment.student.base:
                    raise
                self.downlink.lost()
                sent, whole = request.student, shipment.whole()
                request = replace(request, student=replace(sent, weights=whole.weights, base=whole.base))
            else:
                self.downlink.arrived(shipment)
                return reply

    @property
    def older(self) -> bool:
        """Whether the device may not know what this release adds to a message."""
        hello = self.line.hello
        return hello is None or is_older(hello.version, version("fedstill"))

    def _exchange(self, action: str, request: Sent, expect: type[Reply]) -> Reply:
        """One request and its reply; the cost of a usable reply goes into the ledger."""
        try:
            with self.slots.given_up():
                reply, cost = self.line.ask(action, request, expect)
        except DeviceLacks as lack:
            self._spend(action, request.job.round, lack.spent)
            raise
        if reply.job != request.job:
            raise DeviceFailure("answers another question than it was asked")
        self._spend(action, request.job.round, cost)
        if isinstance(reply, EvaluationResult | InstallResult):
            self.journal.see_bad_clips(self.key.client, faults_in(reply.bad_clips))
        return reply

    def _spend(self, action: str, outer_epoch: int, cost: WireCost) -> None:
        self.journal.spend(self.key, outer_epoch, action, cost.up_bytes, cost.down_bytes)
