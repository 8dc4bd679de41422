"""To whom batch norm statistics of the device's own clips are offered, before public speakers try them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedstill.cloud_server.federation.personal_student import PersonalStudents


def offered(net: str | None = "without the judges", **changes: Any) -> Any:
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
        "world": SimpleNamespace(cross_fit=found.cross_fit),
        "mix": SimpleNamespace(supported=found.supported),
        "_judging": SimpleNamespace(own_statistics=lambda net, clips: (net, clips)),
    }
    return students._own_statistics(net)


def test_the_student_without_the_judging_speakers_is_tried() -> None:
    assert offered() == ("without the judges", 44)
    assert offered(None) is None, "it is a cohort's"


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
def test_not_where_it_could_not_be_trusted(change: dict[str, Any]) -> None:
    assert offered(**change) is None
