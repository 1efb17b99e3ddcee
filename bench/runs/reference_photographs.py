"""Photographs of a person, as a method takes them, with a word on whatever is strange about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from bench.faces.same_person import odd_references
from bench.method import RestorationMethod
from bench.photographs.references import Reference, aligned_references, read_references
from bench.protocol.alignment import TEMPLATES
from bench.runs.own_pictures import say


def read_and_tell(paths: Sequence[Path]) -> list[Reference]:
    """The references that show a face; see `bench.photographs.references.read_references`.

    Raises:
        UsageError: One cannot be read, or none shows a face.
        MissingError: The detector or the recogniser is absent.
    """
    references, warnings = read_references(paths)
    for sentence in warnings:
        say(sentence)
    return references


def crops_of(method: RestorationMethod, references: Sequence[Reference]) -> Tensor:
    """The references' faces as a method wants them, (R, 3, N, N) in [0, 1]."""
    crops, warnings = aligned_references(references, method.training_faces, working_side(method))
    names = [str(reference.path) for reference in references]
    for sentence in [*warnings, *(f"warning: {sentence}" for sentence in odd_references(crops, names))]:
        say(sentence)
    return crops


def working_side(method: RestorationMethod) -> int:
    """Side of the aligned faces that a method works on, in pixels."""
    return method.native_size or TEMPLATES[method.training_faces.template].size
