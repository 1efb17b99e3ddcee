"""Tags for portraits by a vision-language model, one text file beside each picture.

The paper tags with LLaVA-1.6 (Sec. 3.1, "Photography-guided Image Annotation"); its wording was not published.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import BenchError, MissingError
from bench.files import write_text
from bench.image import is_picture
from methods.authface.captions import ENDINGS, caption_file

MODEL = "llava-hf/llava-v1.6-mistral-7b-hf"
#: Kinds of tags that Fig. 2 of the paper shows.
QUESTION = (
    "Describe this portrait by short tags between commas and nothing else. First what it shows: kind of shot, gender, "
    "age, clothes, hair, make-up, background. Then how it is photographed: expression, light, details of skin, view, "
    "focus, resolution."
)
LONGEST = 120

Describe = Callable[[Path], str]


def caption_folder(folder: Path, describe: Describe, say: Callable[[str], None] = lambda line: None) -> tuple[int, int]:
    """Writes a caption beside every picture of a folder that has none.

    Args:
        folder: Looked through with all folders below.
        describe: Gives the caption of a picture.
        say: Told of every picture that has no caption in the end.

    Returns:
        How many were written, and how many pictures could not be described.

    Raises:
        MissingError: There are no pictures.
    """
    pictures = sorted(file for file in folder.rglob("*") if is_picture(file))
    if not pictures:
        raise MissingError(f"{folder} holds no pictures.")
    written = failed = 0
    for picture in pictures:
        if caption_file(picture) is not None:
            continue
        try:
            caption = " ".join(describe(picture).split())
        except Exception as error:  # one picture stops no other
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            reason = "" if caption else "the model said nothing"
        if reason:
            failed += 1
            say(f"{picture}: {reason}")
            continue
        write_text(picture.with_name(picture.stem + ENDINGS[0]), caption + "\n")
        written += 1
    return written, failed


def vision_language_model(name: str = MODEL) -> Describe:
    """Describes pictures with a model of the Hugging Face Hub, which is downloaded if it is not there.

    Raises:
        MissingError: transformers is not installed, or the model cannot be had.
    """
    try:
        from transformers import pipeline
    except ImportError as error:
        raise MissingError(
            "The captioner needs the Python package transformers. Install it with: "
            'pip install "face-restoration-bench[full]"'
        ) from error
    try:
        model: Any = pipeline("image-text-to-text", model=name)
    except (OSError, ValueError) as error:
        raise MissingError(f"The model {name} cannot be had: {str(error).splitlines()[0]}") from error

    def describe(picture: Path) -> str:
        from PIL import Image, ImageOps

        with Image.open(picture) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            content = [{"type": "image", "image": upright}, {"type": "text", "text": QUESTION}]
        answer = model(text=[{"role": "user", "content": content}], max_new_tokens=LONGEST, return_full_text=False)
        return str(answer[0]["generated_text"])

    return describe


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m methods.authface.captioner", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=MODEL, help="a vision-language model of the Hugging Face Hub")
    arguments = parser.parse_args(words)

    def say(line: str) -> None:
        print(line, file=sys.stderr)  # noqa: T201

    try:
        written, failed = caption_folder(arguments.folder, vision_language_model(arguments.model), say)
    except BenchError as error:
        say(str(error))
        return error.exit_code
    print(f"{written} captions written, {failed} pictures without")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
