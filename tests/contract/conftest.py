"""What keeps the many small runs of these tests quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedstill.datasets.audiovisual.capture import rendering


@pytest.fixture(scope="module", autouse=True)
def renderings_of_few_clips() -> Iterator[None]:
    """Renderings are fitted on six public clips instead of 48: here they must be made, not be good.

    ``unit/datasets/test_capture_rendering.py`` looks at how good they are, and fleets and simulations fit them on all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "SAMPLE", 6)
        yield
