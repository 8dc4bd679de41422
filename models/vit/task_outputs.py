"""What a task answers; without torch, so that whatever names it needs none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Output = Literal["classes", "labels", "embedding"]
"""``classes``: one of them is right. ``labels`` (multi-label): each is right or not by itself, by the sigmoid of its
logit. ``embedding``: no head, the trunk's pooled feature itself."""
TENSORS: Mapping[Output, tuple[str, ...]] = {
    "classes": ("logits", "label"),
    "labels": ("logits", "probabilities", "labels"),
    "embedding": ("embedding",),
}
"""Names of the tensors of an answer."""
