"""To whom batch norm statistics of the device's own clips are offered, before public speakers try them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedstill.cloud_server.distillation.candidates import GENERIC_CANDIDATE, Candidate, Training
from fedstill.cloud_server.federation.personal_student import PersonalStudents

RENDERED = Candidate(Training(rendered=True))


def offered(candidate: Candidate, **changes: Any) -> Any:
    """(the network that public speakers try, the device's clips), or None."""
    known = {
        "allowed": True,
        "tested": True,
        "cohort": None,
        "confidence": np.ones(10),
        "cross_fit": "fit",
        "supported": False,
    }
    assert changes.keys() <= known.keys()
    found = SimpleNamespace(**{**known, **changes})
    students: Any = object.__new__(PersonalStudents)
    students.__dict__ |= {
        "_plan": SimpleNamespace(
            capture=SimpleNamespace(own_statistics=found.allowed), guard=SimpleNamespace(test=found.tested)
        ),
        "_cohort": found.cohort,
        "_summary": SimpleNamespace(confidence=found.confidence, counts=np.array([44])),
        "_check_nets": {RENDERED.training: "rendered, without the judges"},
        "_cloud": SimpleNamespace(fold_generic=lambda fold: f"generic without fold {fold}"),
        "world": SimpleNamespace(cross_fit=found.cross_fit),
        "mix": SimpleNamespace(supported=found.supported),
        "_judging": SimpleNamespace(own_statistics=lambda net, clips: (net, clips)),
    }
    return students._own_statistics(candidate)


def test_the_student_without_the_judging_speakers_is_tried() -> None:
    assert offered(RENDERED) == ("rendered, without the judges", 44)
    assert offered(GENERIC_CANDIDATE) == ("generic without fold 0", 44)


@pytest.mark.parametrize("candidate", [GENERIC_CANDIDATE, RENDERED])
@pytest.mark.parametrize(
    "change",
    [
        {"allowed": False},
        {"tested": False},
        {"cohort": "with others"},
        {"confidence": np.empty(0)},
        {"cross_fit": None},
        {"supported": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_not_where_it_could_not_be_trusted(candidate: Candidate, change: dict[str, Any]) -> None:
    assert offered(candidate, **change) is None
