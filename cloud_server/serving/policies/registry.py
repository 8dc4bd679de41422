"""Every policy by its id, which users type and results keep; a few have a second name to type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fedstill.cloud_server.serving.policies.clipper import ClipperPolicy
from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy
from fedstill.cloud_server.serving.policies.fixed import FixedPolicy
from fedstill.cloud_server.serving.policies.infaas import InfaasPolicy
from fedstill.cloud_server.serving.policies.otas import OtasPolicy
from fedstill.cloud_server.serving.policies.prodigy import ProdigyPolicy, most_reduced
from fedstill.cloud_server.serving.policies.slackfit import SlackFitPolicy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.common.errors import DataError


def _fixed(name: str, token_delta: int, int8: bool = False) -> Callable[[Profile], Policy]:
    return partial(FixedPolicy, name, token_delta=token_delta, int8=int8)


def _vanilla(profile: Profile) -> Policy:
    return OtasPolicy(profile.of_model(""))


def _maxprune(profile: Profile) -> Policy:
    return ProdigyPolicy(most_reduced(profile))


POLICIES: Mapping[str, Callable[[Profile], Policy]] = {
    "pets": _fixed("pets", 0),
    "infaas": InfaasPolicy,
    "tome5": _fixed("tome5", -5),
    "tome10": _fixed("tome10", -10),
    "tome15": _fixed("tome15", -15),
    "tome20": _fixed("tome20", -20),
    "int8": _fixed("int8", 0, int8=True),
    "tome15q": _fixed("tome15q", -15, int8=True),
    "tome20q": _fixed("tome20q", -20, int8=True),
    "vpt2": _fixed("vpt2", 2),
    "vpt4": _fixed("vpt4", 4),
    "vpt8": _fixed("vpt8", 8),
    "clipper": ClipperPolicy,
    "slackfit": SlackFitPolicy,
    "faithful": OtasPolicy,
    "vanilla": _vanilla,
    "maxprune": _maxprune,
    "prodigy": ProdigyPolicy,
    "fedstill": FedstillPolicy,
}

LABELS: Mapping[str, str] = {
    "pets": "PetS",
    "infaas": "INFaaS",
    "tome5": "ToMe -5",
    "tome10": "ToMe -10",
    "tome15": "ToMe -15",
    "tome20": "ToMe -20",
    "int8": "int8",
    "tome15q": "ToMe -15, int8",
    "tome20q": "ToMe -20, int8",
    "vpt2": "VPT +2",
    "vpt4": "VPT +4",
    "vpt8": "VPT +8",
    "clipper": "Clipper",
    "slackfit": "SlackFit",
    "faithful": "OTAS",
    "vanilla": "OTAS, no warm-up",
    "maxprune": "Maxprune",
    "prodigy": "Prodigy",
    "fedstill": "fedstill",
}


ALIASES: Mapping[str, str] = {"otas": "faithful", "otas-without-warm-up": "vanilla"}
"""Names that users may also type. Results and files on disk keep the ids of POLICIES."""


def policy_id(name: str) -> str:
    """The id of a policy under either of its names; an unknown name comes back as it is."""
    return ALIASES.get(name, name)


def make_policy(name: str, profile: Profile) -> Policy:
    """A fresh policy by its id. Raises DataError for an unknown name, or one that the profile has no schedule for."""
    if name not in POLICIES:
        raise DataError(f"unknown policy {name!r} (known: {', '.join(POLICIES)})")
    return POLICIES[name](profile)
