"""The downlink to one device: what it has, what it lacks, and updates made for exactly that.

Every personalisation has a downlink of its own that starts with a full student. So the bytes of one arm do not depend
on which arms ran before. With rounded weights, neither do the results that its device computes. A version counts as
known once the device used it in an answer. A device that lost its files gets the same version whole, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.models.weights.checkpoint import network_to_json
from fedstill.models.weights.delta import content_hash, encode_update
from fedstill.models.weights.delta_coding import UpdatePrecision
from fedstill.models.weights.packing import arrays, load_arrays
from fedstill.protos.messages import Student


@dataclass(frozen=True)
class Acknowledged:
    """What a device has: ``version`` and ``state`` as it reconstructed them, from the network ``source`` (a hash)."""

    version: str
    state: dict[str, npt.NDArray[Any]]
    source: str

    def network(self, spec: NetworkSpec) -> AudioVisualNet:
        """The network of this kind that the device runs."""
        net = AudioVisualNet(spec)
        load_arrays(net, self.state)
        return net.eval()


@dataclass(frozen=True)
class Shipment:
    """A student in transit: ``student`` as it travels, and the device's state once it ``reached`` it."""

    student: Student
    reached: Acknowledged

    def whole(self) -> Student:
        """The same version for a device without the base of the update."""
        update = encode_update(self.reached.state, None, "exact")
        return replace(self.student, weights=_bytes(update.payload), base="")


class Downlink:
    """To one device, during one personalisation.

    Args:
        class_names: order of the logits.
    """

    def __init__(self, precision: UpdatePrecision, class_names: tuple[str, ...]) -> None:
        self.precision, self.class_names = precision, class_names
        self.own_statistics, self.least_share = 0.0, 0.0
        """Of every student from now on, see ``messages.Student``."""
        self._acknowledged: Acknowledged | None = None

    def shipment(self, net: AudioVisualNet) -> Shipment:
        """The part of ``net`` that the device does not have yet."""
        spec, known = network_to_json(net.spec), self._acknowledged
        state = arrays(net)
        source = content_hash(state, (spec, *self.class_names))
        if known and known.source == source:  # also if the device has it rounded: it is not refined
            update, version = encode_update(known.state, known.state, "exact"), known.version
        else:
            update = encode_update(state, known.state if known else None, self.precision)
            version = content_hash(update.state, (spec, *self.class_names))
        base = known.version if known else ""
        own = self.own_statistics, self.least_share
        student = Student(_bytes(update.payload), spec, self.class_names, version, base, *own)
        return Shipment(student, Acknowledged(version, update.state, source))

    def received(self, net: AudioVisualNet) -> AudioVisualNet:
        """``net`` as the device has it, or will have it: with the rounded weights of the downlink."""
        return self.shipment(net).reached.network(net.spec)

    def arrived(self, shipment: Shipment) -> None:
        """The device answered with this student, so it has it."""
        self._acknowledged = shipment.reached

    def lost(self) -> None:
        """The device reports that it no longer has its student."""
        self._acknowledged = None


def _bytes(payload: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(payload, np.uint8)
