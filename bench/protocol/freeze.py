"""Freezes protocols and finds the frozen ones.

`bench data freeze data=NAME --commit` writes the file under `datasets/protocols/`, which is committed. It is made once;
a changed protocol gets a name of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import MissingError, UsageError
from bench.files import sha256_bytes, write_json
from bench.paths import bench_home, resource_root
from bench.progress import counted
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import DataSettings, Protocol, ProtocolMismatchError, presets_of, protocol_id
from bench.protocol.selection import plan_images


def freeze(settings: DataSettings) -> Protocol:
    """Freezes a protocol: plans it, makes every picture once, and records the hashes of the pixels."""
    root = data_root(load_card(settings.card), settings.root)
    protocol = _unfrozen(settings, root)
    require_images(protocol)
    pictures = ProtocolPictures(protocol, root)
    images = []
    for image in counted(protocol.images, "frozen"):
        truth = None if image.source is None else pictures.truth(image)
        lq = pictures.lq(image, truth)
        images.append(
            replace(
                image,
                gt_sha256=None if truth is None else sha256_bytes(truth.tobytes()),
                lq_sha256=sha256_bytes(lq.tobytes()),
            )
        )
    return replace(protocol, images=tuple(images))


def _unfrozen(settings: DataSettings, root: Path) -> Protocol:
    images = plan_images(settings, root)
    if len({image.image_id for image in images}) < len(images):
        raise UsageError(f"Two pictures of {root} would have one name. Rename the files.")
    specifications = [pipeline.specification() for pipeline in settings.pipelines()]
    several = isinstance(settings.degradation, list)
    degradation = specifications if several else next(iter(specifications), None)
    planted = settings.probe_settings()
    probe = None if planted is None else planted.specification()
    identifier = protocol_id(settings.size, settings.seed, degradation, images, settings.name, probe)
    return Protocol(
        name=settings.name,
        title=settings.title,
        card=settings.card,
        split=settings.split,
        size=settings.size,
        seed=settings.seed,
        degradation=degradation,
        selection=_selection(settings),
        images=images,
        id=identifier,
        probe=probe,
    )


def _selection(settings: DataSettings) -> dict[str, Any]:
    further = {
        "identities": settings.identities,
        "minimum_photos": settings.minimum_photos,
        "selection": settings.selection,
    }
    return {
        "references": settings.references,
        "targets": settings.targets,
        **{key: value for key, value in further.items() if value is not None},
    }


def committed_path(name: str) -> Path:
    """Where the frozen protocol of a data configuration is committed."""
    return resource_root() / "datasets" / "protocols" / f"{name}.json"


def load_protocol(settings: DataSettings) -> Protocol:
    """The frozen protocol of a data configuration.

    The committed one where there is one and the settings are its own; otherwise one frozen on this
    machine, kept under the bench home.

    Raises:
        ProtocolMismatchError: The settings are those of the committed protocol, but a source file or
            an operator version is not; the message names it.
        MissingError: The data set is absent.
    """
    root = data_root(load_card(settings.card), settings.root)
    planned = _unfrozen(settings, root)
    places = [committed_path(settings.name), bench_home() / "protocols" / f"{settings.name}-{planned.id}.json"]
    for place in places:
        if place.is_file():
            frozen = Protocol.from_dict(json.loads(place.read_text("utf-8")))
            if frozen.id == planned.id:
                return frozen
            _explain_difference(frozen, planned)
    frozen = freeze(settings)
    write_json(places[-1], frozen.as_dict())
    return frozen


def _explain_difference(frozen: Protocol, planned: Protocol) -> None:
    """Raises if `planned` is meant to be `frozen` but cannot be; returns if it is a protocol of its own."""

    def settings(protocol: Protocol) -> Any:
        degradation = [
            {key: value for key, value in preset.items() if key != "versions"}
            for preset in presets_of(protocol.degradation)
        ]
        return (
            degradation,
            protocol.size,
            protocol.seed,
            protocol.split,
            protocol.card,
            protocol.selection,
            protocol.probe,
        )

    if settings(frozen) != settings(planned):
        return
    if frozen.image_ids != planned.image_ids:
        absent = sorted(set(frozen.image_ids) - set(planned.image_ids))
        surplus = sorted(set(planned.image_ids) - set(frozen.image_ids))
        raise ProtocolMismatchError(
            f"Your copy of {frozen.card} does not give the pictures of the protocol {frozen.name} ({frozen.id}): "
            f"{len(absent)} are missing ({', '.join(absent[:3]) or 'none'}), {len(surplus)} are new "
            f"({', '.join(surplus[:3]) or 'none'}). Repair the data set, or give your protocol a name of its own "
            "(data.name=…)."
        )
    ours, theirs = (
        {name: version for preset in presets_of(protocol.degradation) for name, version in preset["versions"].items()}
        for protocol in (planned, frozen)
    )
    changed = [
        f"{name} v{theirs.get(name)} → v{version}" for name, version in ours.items() if theirs.get(name) != version
    ]
    if changed:
        raise ProtocolMismatchError(
            f"The protocol {frozen.name} ({frozen.id}) was frozen with other operator versions: {', '.join(changed)}. "
            "Scores would not be comparable; give the changed protocol a name of its own (data.name=…)."
        )
    for one, other in zip(planned.images, frozen.images, strict=True):
        pairs = zip((one.source, one.lq, *one.references), (other.source, other.lq, *other.references), strict=False)
        for mine, expected in pairs:
            if mine is not None and expected is not None and mine.as_dict() != expected.as_dict():
                raise ProtocolMismatchError(
                    f"{mine.path} is not the photograph that the protocol {frozen.name} ({frozen.id}) was frozen with "
                    f"(expected {expected.path}, SHA-256 {expected.sha256[:12]}…, found {mine.sha256[:12]}…)."
                )


def require_images(protocol: Protocol) -> None:
    """Raises where a protocol has nothing to restore."""
    if not protocol.images:
        raise MissingError(f"The protocol {protocol.name} holds no pictures.")
