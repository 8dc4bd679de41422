"""``fedstill import``: a trained Vision Transformer of another program becomes weights that the serving tier reads.

The result is a safetensors file with timm's names and a card beside it. Nothing of the source is run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedstill.cloud_server.serving.engine.trunk import assemble, pictures
from fedstill.cloud_server.serving.engine.weights_card import WeightsCard, card_path, is_foreign
from fedstill.cloud_server.serving.imports import huggingface_vit
from fedstill.cloud_server.serving.imports.cards import own_card, resized, timm_card, transformers_card
from fedstill.cloud_server.serving.imports.find_trunk import FoundTrunk, find_trunk, linear_head, split_head
from fedstill.cloud_server.serving.imports.read_state import ImportFault, ReadState, read_state
from fedstill.cloud_server.serving.imports.source_files import SourceFiles, source_files
from fedstill.common.atomic_files import replace_file
from fedstill.common.dataclass_codec import to_plain

SHOWN = 4
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ImportOptions:
    """As typed.

    Attributes:
        architecture: timm model name, if the source does not say it.
        image_size: side of pictures, if another than that of the weights.
        class_names: of the head, if the source does not name them; empty otherwise.
        preprocess: fields of ``Preprocess`` that differ from what the source says.
        head: False to leave it out.
    """

    architecture: str | None = None
    image_size: int | None = None
    class_names: Sequence[str] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    head: bool = True


@dataclass(frozen=True)
class Imported:
    """card: of the written file. remarks: what a person should know, a line each."""

    card: WeightsCard
    image_size: int
    remarks: tuple[str, ...]


def import_weights(source: Path, out: Path, options: ImportOptions) -> Imported:
    """Read ``source``, a folder or a weights file, and write ``out`` and the card beside it.

    Raises:
        ImportFault: a source that cannot be read or is not supported, or a file of somebody else's at the place of
            the card.
        TrunkError: weights that do not fit the architecture.
    """
    if out.suffix != SUFFIX:
        raise ImportFault(f"--out {out}: needs a name that ends in {SUFFIX}")
    files = source_files(source)
    if out.resolve() == files.weights.resolve():
        raise ImportFault(f"--out {out}: is the source itself: name another file")
    _refuse_to_replace(card_path(out))
    read = read_state(files.weights)
    found = find_trunk(files.weights, read.state)
    inside, candidates = split_head(found)
    remarks = [f"taken from the checkpoint's {read.place}"] if read.place else []
    own = own_card(files, read.sha256, options.architecture)
    if own is not None:  # what other programs say beside it was read when it was imported first
        files = replace(files, config={"label_names": list(own.class_names)}, licence=own.licence)
        card, state = own, dict(inside)
    elif found.library == "transformers":
        card, state = transformers_card(files, inside)
    else:
        card, state = timm_card(files, inside, read.notes, options.architecture)
    if files.card is not None and own is None:
        remarks.append(f"{card_path(files.weights).name} is the card of another file, and was not read")
    embedded = state.get("patch_embed.proj.bias")
    width = len(embedded) if embedded is not None and embedded.ndim == 1 else 0
    head = linear_head(files.weights, candidates, width) if options.head else None
    if head is not None:
        state |= {"head.weight": head[0], "head.bias": head[1]}
    used = {name for name in inside if not name.startswith(huggingface_vit.UNUSED)}
    remarks += _left_out(found, used | candidates.keys() if head is not None else used)
    card, state = resized(card, state, options.image_size)
    card, named = _described(card, files, head, options)
    net = assemble(card, {name: value.float() for name, value in state.items()}, str(files.weights))
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ImportFault(f"{files.weights}: holds NaN or infinity")
    origin = own.origin if own is not None else _origin(files, read, found)
    written = _write(replace(card, origin=origin), state, out)
    return Imported(written, net.image_size, (*remarks, *named))


def _refuse_to_replace(card: Path) -> None:
    """Raises ImportFault for a file that is not a card: often it is the configuration of the source."""
    try:
        foreign = is_foreign(card)
    except OSError as error:
        raise ImportFault(f"{card}: cannot be written ({error.strerror})") from None
    if foreign:
        raise ImportFault(
            f"{card}: is not a card of fedstill import, and would be replaced: give another --out"
        )


def _described(
    card: WeightsCard, files: SourceFiles, head: tuple[Tensor, Tensor] | None, options: ImportOptions
) -> tuple[WeightsCard, list[str]]:
    """With classes, licence and the caller's preparation; and remarks on the names of classes."""
    values = {**to_plain(card.preprocess), **options.preprocess}
    classes = 0 if head is None else len(head[0])
    names, remarks = _class_names(files.config or {}, classes, options.class_names)
    config = files.config or {}
    stated = config.get("pretrained_cfg")
    licence = files.licence or str((stated if isinstance(stated, Mapping) else {}).get("license") or "")
    try:
        return replace(
            card,
            class_names=names,
            preprocess=pictures(values, files.weights.name),
            licence=licence,
            multi_label=card.multi_label and bool(names),
        ), remarks
    except ValueError as error:
        if isinstance(error, ImportFault):
            raise
        raise ImportFault(f"{files.weights}: {error}") from None


def _class_names(
    config: Mapping[str, Any], classes: int, given: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """All different; and remarks."""
    if not classes:
        if given:
            raise ImportFault("--classes: there is no head to name the classes of")
        return (), []
    if classes == 1:
        raise ImportFault("the head has one output, and a task needs at least two classes: give --no-head")
    if given and len(given) != classes:
        raise ImportFault(f"--classes: {len(given)} names, and the head has {classes} classes")
    names = tuple(given) or huggingface_vit.class_names(config, classes) or _label_names(config, classes)
    if not names:
        return tuple(map(str, range(classes))), ["the source names no classes: they are numbers (--classes)"]
    counts = Counter(names)
    repeated = [name for name in counts if counts[name] > 1]
    if not repeated:
        return names, []
    told = tuple(f"{name} ({place})" if counts[name] > 1 else name for place, name in enumerate(names))
    return told, [f"{len(repeated)} names of classes are there twice, and got their number: {repeated[0]}"]


def _label_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Of timm's ``config.json``."""
    labels = config.get("label_names")
    return tuple(map(str, labels)) if isinstance(labels, list) and len(labels) == classes else ()


def _left_out(found: FoundTrunk, used: Collection[str]) -> list[str]:
    """used: names of the source whose tensors were taken."""
    names = [name for name in (*found.outside, *found.inside) if name not in used]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"left out: {', '.join(names[:SHOWN])}{more}"] if names else []


def _origin(files: SourceFiles, read: ReadState, found: FoundTrunk) -> dict[str, str]:
    """Where the weights come from; the file's name alone, because a path says something of a machine."""
    newer = (files.config or {}).get("transformers_version")
    library = f"transformers {newer}" if found.library == "transformers" and newer else found.library
    return {
        "file": files.weights.name,
        "sha256": read.sha256,
        "library": library,
        "imported_by": f"fedstill {version('fedstill')}",
    }


def _write(card: WeightsCard, state: Mapping[str, Tensor], out: Path) -> WeightsCard:
    """Weights first: a card that was left from before does not fit them, and says so."""
    whole = {name: state[name].clone(memory_format=torch.contiguous_format) for name in sorted(state)}
    content = safetensors.torch.save(whole, {"format": "pt"})
    written = replace(card, sha256=hashlib.sha256(content).hexdigest())
    try:
        described = written.text.encode()
    except UnicodeEncodeError as error:  # before anything is replaced
        raise ImportFault(
            f"{out}: its description would hold {error.object[error.start]!r}, which is no text"
        ) from None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, content)
        replace_file(card_path(out), described)
    except OSError as error:
        raise ImportFault(f"{out}: cannot be written ({error.strerror})") from None
    return written
