"""Options that several commands share, and what they mean to the library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from facepipe.detector import DetectorOptions
    from facepipe.pipeline import FacePipeline
    from facepipe.runtime import RuntimeChoice

Command = Callable[..., Any]


class _ThreeNumbers(click.ParamType):
    name = "M,M,M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`104,117,123` to a tuple of floats."""
        try:
            first, second, third = (float(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"expected three numbers such as 104,117,123, got {value!r}", param, ctx)
        return first, second, third


class _AnchorSizes(click.ParamType):
    name = "S,S/S,S/S,S"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`16,32/64,128/256,512` to an `AnchorSpec`."""
        from weights.card import AnchorSpec

        try:
            sizes = tuple(tuple(int(side) for side in level.split(",")) for level in str(value).split("/"))
        except ValueError:
            self.fail(f"expected sizes such as 16,32/64,128/256,512, got {value!r}", param, ctx)
        return AnchorSpec(sizes_px=sizes)


THREE_NUMBERS = _ThreeNumbers()
ANCHOR_SIZES = _AnchorSizes()


@dataclass(frozen=True, slots=True)
class Setup:
    """The common options of a command, as given."""

    detector_weights: str | None
    encoder_weights: str | None
    score_threshold: float | None
    nms_iou: float | None
    max_side: int | None
    original_size: bool
    min_face: float
    top_k: int | None
    max_megapixels: float | None
    device: str
    runtime: str

    def detector_options(self) -> DetectorOptions:
        """The detector's defaults with what was asked for."""
        from facepipe.detector import DetectorOptions
        from facepipe.errors import UsageError

        if self.original_size and self.max_side is not None:
            raise UsageError("--max-side and --original-size exclude each other")
        standard = DetectorOptions()
        return DetectorOptions(
            score_threshold=_given(self.score_threshold, standard.score_threshold),
            nms_iou=_given(self.nms_iou, standard.nms_iou),
            max_side=None if self.original_size else self.max_side or standard.max_side,
            min_face_px=self.min_face,
            top_k=self.top_k,
        )

    def max_pixels(self) -> int:
        """Largest photo read."""
        from facepipe.images import DEFAULT_MAX_PIXELS

        return DEFAULT_MAX_PIXELS if self.max_megapixels is None else round(self.max_megapixels * 1e6)

    def choose_runtime(self) -> RuntimeChoice:
        """What runs where, said once on stderr."""
        from facepipe.runtime import choose_runtime

        choice = choose_runtime(self.runtime, self.device)  # type: ignore[arg-type]
        logging.getLogger("facepipe").info("running on %s", choice)
        return choice

    def pipeline(self, gallery: Path | None = None, *, create: bool = False) -> FacePipeline:
        """Networks and gallery, opened."""
        from facepipe.pipeline import FacePipeline
        from weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

        return FacePipeline.load(
            gallery,
            create_gallery=create,
            detector_weights=self.detector_weights or DEFAULT_DETECTOR,
            encoder_weights=self.encoder_weights or DEFAULT_ENCODER,
            options=self.detector_options(),
            runtime=self.choose_runtime(),
        )


def _given(value: float | None, standard: float) -> float:
    return standard if value is None else value


_SETUP_OPTIONS = [
    click.option("--detector-weights", metavar="NAME", help="Weight of the detector, by name or card."),
    click.option("--encoder-weights", metavar="NAME", help="Weight of the encoder, by name or card."),
    click.option("--score-threshold", type=float, metavar="0..1", help="Least confidence in a face."),
    click.option("--nms-iou", type=float, metavar="0..1", help="Boxes overlapping more are one face."),
    click.option("--max-side", type=int, metavar="PX", help="Scale larger photos down to this."),
    click.option("--original-size", is_flag=True, help="Look at photos of any size as they are."),
    click.option("--min-face", type=float, default=0.0, metavar="PX", help="Pass over smaller faces."),
    click.option("--top-k", type=int, metavar="N", help="At most this many faces a photo."),
    click.option("--max-megapixels", type=float, metavar="MP", help="Refuse larger photos."),
    click.option("--device", default="auto", metavar="cpu|cuda[:N]", help="Where to run."),
    click.option("--runtime", default="auto", metavar="onnx|torch", help="What to run on."),
]


def with_setup(command: Command) -> Command:
    """Add the common options; the command gets them as one `setup`."""

    def wrapper(**values: Any) -> Any:
        names = Setup.__dataclass_fields__
        setup = Setup(**{name: values.pop(name) for name in names})
        return command(setup=setup, **values)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_SETUP_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def default_gallery() -> Path:
    """The user's own gallery."""
    from facepipe.home import facepipe_home

    return facepipe_home() / "gallery"


gallery_option = click.option(
    "--gallery",
    "gallery_path",
    type=click.Path(path_type=Path),
    default=default_gallery,
    metavar="DIR",
    show_default="$FACEPIPE_HOME/gallery",
    help="Folder of the gallery.",
)
photos_argument = click.argument("photos", nargs=-1, required=True, type=click.Path())
