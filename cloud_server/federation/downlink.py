"""The downlink to one device: what it has, what it lacks, and updates made for exactly that.

Every personalisation has a downlink of its own that starts with a full student. So the bytes of one arm do not depend
on which arms ran before. With rounded weights, neither do the results that its device computes. A version counts as
known once the device used it in an answer. A device that lost its files gets the same version whole, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.federation.exchange import DeviceLacks
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.checkpoint import network_to_json
from fedstill.models.weights.delta import content_hash, encode_update
from fedstill.models.weights.delta_coding import UpdatePrecision
from fedstill.models.weights.packing import arrays
from fedstill.protos.messages import Student

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Acknowledged:
    """What a device has: ``version`` and ``state`` as it reconstructed them, from the network ``source`` (a hash)."""

    version: str
    state: dict[str, npt.NDArray[Any]]
    source: str


class Downlink:
    """To one device, during one personalisation.

    Args:
        class_names: order of the logits.
    """

    def __init__(self, precision: UpdatePrecision, class_names: tuple[str, ...]) -> None:
        self.precision, self.class_names = precision, class_names
        self.acknowledged: Acknowledged | None = None

    def ask(self, net: AudioVisualNet, ask: Callable[[Student], Reply]) -> Reply:
        """Send a request that needs the student ``net``; only the part that the device does not have yet travels.

        Args:
            ask: sends the request with the student that it is given, and returns the reply.

        Raises:
            DeviceFailure: as ``ask`` does; also if the device still lacks a base although the student came whole.
        """
        student, reached = self._prepared(net)
        try:
            reply = ask(student)
        except DeviceLacks as lack:
            if lack.item != "base" or not student.base:
                raise
            self.acknowledged = None
            whole = encode_update(reached.state, None, "exact").payload
            reply = ask(replace(student, weights=_bytes(whole), base=""))
        self.acknowledged = reached
        return reply

    def reaches(self, net: AudioVisualNet) -> Acknowledged:
        """What the device will have when it has been sent ``net``."""
        return self._prepared(net)[1]

    def _prepared(self, net: AudioVisualNet) -> tuple[Student, Acknowledged]:
        spec, known = network_to_json(net.spec), self.acknowledged
        state = arrays(net)
        source = content_hash(state, (spec, *self.class_names))
        if known and known.source == source:  # also if the device has it rounded: it is not refined
            update, version = encode_update(known.state, known.state, "exact"), known.version
        else:
            update = encode_update(state, known.state if known else None, self.precision)
            version = content_hash(update.state, (spec, *self.class_names))
        student = Student(
            _bytes(update.payload), spec, self.class_names, version, known.version if known else ""
        )
        return student, Acknowledged(version, update.state, source)


def _bytes(payload: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(payload, np.uint8)
