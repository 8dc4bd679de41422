"""Reads deploy/kserve/ by KServe's own models: fields that they do not know, and values of another type, are printed.

KServe's package needs a psutil of its own, so this runs in the environment of ``make clients``:

    .venv-clients/bin/python tests/helpers/kserve_manifests.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client.models
import yaml

FILE = Path(__file__).parents[2] / "deploy" / "kserve" / "fedstill.yaml"
KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}


def faults(asked: Any, kind: str, place: str) -> list[str]:
    """What ``asked`` has that the model ``kind`` has not."""
    if found := re.fullmatch(r"(?:list|List)\[(.+)\]", kind):
        if not isinstance(asked, list):
            return [f"{place}: {asked!r} is no list"]
        return [line for n, one in enumerate(asked) for line in faults(one, found[1], f"{place}[{n}]")]
    if found := re.fullmatch(r"(?:dict|Dict)[(\[]str, (.+)[)\]]", kind):
        return [line for key, one in asked.items() for line in faults(one, found[1], f"{place}.{key}")]
    if kind in PLAIN:
        return [] if isinstance(asked, PLAIN[kind]) else [f"{place}: {asked!r} is no {kind}"]
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind)
    if not isinstance(asked, dict):
        return [f"{place}: {asked!r} is no {kind}"]
    names = {theirs: ours for ours, theirs in model.attribute_map.items()}
    return [
        line
        for key, one in asked.items()
        for line in (
            faults(one, model.openapi_types[names[key]], f"{place}.{key}")
            if key in names
            else [f"{place}.{key}: unknown to {kind}"]
        )
    ]


def main() -> None:
    """Ends with 1 if anything is wrong."""
    found = [
        line
        for asked in yaml.safe_load_all(FILE.read_text())
        for line in faults(asked, KINDS[asked["kind"]], asked["kind"])
    ]
    sys.stdout.write("\n".join((*found, f"{FILE.name}: {len(found)} faults")) + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
