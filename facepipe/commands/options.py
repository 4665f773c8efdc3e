"""Options that several commands share, and what they mean to the library."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from facepipe.core.environment import THREAD_VARIABLES
from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.processors import MAX_THREADS, THREADS_VARIABLE

if TYPE_CHECKING:
    from facepipe.batch.ray_worker import Networks
    from facepipe.detector import DetectorOptions
    from facepipe.gallery.address import GalleryAddress, PostgresAddress
    from facepipe.pipeline import FacePipeline, NamingOptions
    from facepipe.runtime.engines import RuntimeChoice, RuntimeName
    from facepipe.weights.cards import AnchorSpec

Command = Callable[..., Any]
Value = TypeVar("Value")

_EMPTY = "expected a path, got an empty text (a variable that is not set?); the folder you are in is '.'"


class GivenPath(click.Path):
    """A path. An empty one, as of a variable that is not set, is not the folder that the user is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check it as `click.Path` does, and refuse an empty one."""
        if value == "":
            self.fail(_EMPTY, param, ctx)
        return super().convert(value, param, ctx)


ANY_PATH = GivenPath(path_type=Path, readable=False)
"""A path that click does not check: whoever opens it says what is wrong, with the right exit code."""
FOLDER = GivenPath(path_type=Path, file_okay=False)
FILE = GivenPath(path_type=Path, dir_okay=False)
PHOTOS = GivenPath(readable=False)
"""A file, a folder or a glob, as text."""


def gallery_place(text: str | Path | PostgresAddress) -> GalleryAddress:
    """Type of an option: a gallery's folder, which need not exist, or its PostgreSQL URL."""
    from facepipe.gallery.address import parse_address

    if text == "":
        raise click.BadParameter(_EMPTY)
    return parse_address(text)


def three_numbers(text: str) -> tuple[float, float, float]:
    """`104,117,123` to floats."""
    try:
        first, second, third = (float(word) for word in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected three numbers such as 104,117,123, got {text!r}") from error
    return first, second, third


def anchor_sizes(text: str) -> AnchorSpec:
    """`16,32/64,128/256,512` to anchors."""
    from facepipe.weights.cards import AnchorSpec

    try:
        return AnchorSpec(tuple(tuple(int(side) for side in level.split(",")) for level in text.split("/")))
    except (ValueError, WeightsError) as error:
        message = f"expected sizes such as 16,32/64,128/256,512, got {text!r}"
        raise click.BadParameter(message) from error


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
    runtime: RuntimeName

    def detector_options(self) -> DetectorOptions:
        """Return the detector's defaults with what was asked for."""
        from facepipe.detector import DetectorOptions

        if self.original_size and self.max_side is not None:
            raise UsageError("--max-side and --original-size exclude each other")
        standard = DetectorOptions()
        return DetectorOptions(
            score_threshold=_given(self.score_threshold, standard.score_threshold),
            nms_iou=_given(self.nms_iou, standard.nms_iou),
            max_side=None if self.original_size else _given(self.max_side, standard.max_side),
            min_face_px=self.min_face,
            top_k=self.top_k,
        )

    def max_pixels(self) -> int:
        """Largest photo read."""
        from facepipe.images.reading import DEFAULT_MAX_PIXELS

        if self.max_megapixels is None:
            return DEFAULT_MAX_PIXELS
        if not 0 < self.max_megapixels < math.inf:
            raise UsageError(f"--max-megapixels: expected more than 0, got {self.max_megapixels}")
        return round(self.max_megapixels * 1e6)

    def choose_runtime(self, calls: int = 1) -> RuntimeChoice:
        """Choose runtime and device, reported once on stderr; `calls` of a network run side by side."""
        from facepipe.runtime.engines import choose_runtime

        choice = choose_runtime(self.runtime, self.device, calls=calls)
        logging.getLogger("facepipe").info("running on %s", choice)
        return choice

    def networks(self) -> Networks:
        """Return what other processes load to have the same networks."""
        from facepipe.batch.ray_worker import Networks
        from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

        return Networks(
            _findable(self.detector_weights or DEFAULT_DETECTOR),
            _findable(self.encoder_weights or DEFAULT_ENCODER),
            self.detector_options(),
            self.runtime,
        )

    def pipeline(
        self, gallery: GalleryAddress | None = None, *, create: bool = False, calls: int = 1
    ) -> FacePipeline:
        """Networks and gallery, opened."""
        from facepipe.pipeline import FacePipeline
        from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

        return FacePipeline.load(
            gallery,
            create_gallery=create,
            detector_weights=self.detector_weights or DEFAULT_DETECTOR,
            encoder_weights=self.encoder_weights or DEFAULT_ENCODER,
            options=self.detector_options(),
            runtime=self.choose_runtime(calls),
        )


def _given(value: Value | None, standard: Value) -> Value:
    return standard if value is None else value


def _findable(weights: str) -> str:
    """Return the name of a weight as it is, and the path of a card as other processes find it."""
    return os.path.abspath(weights) if weights.endswith(".json") else weights


def _set_environment(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _set_while_running(context: click.Context, settings: Mapping[str, str | None]) -> None:
    """Change environment variables until the command ends; None removes one."""
    before = {name: os.environ.get(name) for name in settings}
    _set_environment(settings)
    context.call_on_close(lambda: _set_environment(before))


def _give_threads(context: click.Context, _: click.Parameter, threads: int | None) -> None:
    """Put the number into the environment, for facepipe and for the packages that it computes with."""
    if threads is not None:
        names = (THREADS_VARIABLE, *THREAD_VARIABLES)
        _set_while_running(context, dict.fromkeys(names, str(threads)))


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    expose_value=False,
    callback=_give_threads,
    help="Threads that compute at once.  [default: $FACEPIPE_THREADS, else the granted processors]",
)


_SETUP_OPTIONS = [
    click.option("--detector-weights", metavar="NAME", help="Weight of the detector, by name or card."),
    click.option("--encoder-weights", metavar="NAME", help="Weight of the encoder, by name or card."),
    click.option("--score-threshold", type=float, metavar="0..1", help="Lowest confidence of a face."),
    click.option("--nms-iou", type=float, metavar="0..1", help="Boxes overlapping more are one face."),
    click.option("--max-side", type=int, metavar="PX", help="Scale photos with a longer side down to it."),
    click.option("--original-size", is_flag=True, help="Analyse photos of any size as they are."),
    click.option("--min-face", type=float, default=0.0, metavar="PX", help="Pass over smaller faces."),
    click.option("--top-k", type=int, metavar="N", help="At most this many faces a photo."),
    click.option("--max-megapixels", type=float, metavar="MP", help="Refuse larger photos."),
    click.option("--device", default="auto", metavar="cpu|cuda[:N]", help="Where to run."),
    click.option("--runtime", default="auto", metavar="onnx|openvino|torch", help="What to run on."),
    threads_option,
]


def option_group(
    name: str, build: Callable[..., Any], options: Sequence[Command]
) -> Callable[[Command], Command]:
    """Make a decorator that adds options to a command, which gets them as one object.

    Args:
        name: The command's parameter for that object.
        build: Makes it; its parameters are those of the options.
        options: Decorators of click.
    """

    def decorate(command: Command) -> Command:
        def wrapper(**values: Any) -> Any:
            own = {parameter: values.pop(parameter) for parameter in inspect.signature(build).parameters}
            return command(**{name: build(**own)}, **values)

        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(options):
            wrapper = option(wrapper)
        return wrapper

    return decorate


with_setup = option_group("setup", Setup, _SETUP_OPTIONS)
"""Add the common options; the command gets them as one `setup`."""


def _naming_options(threshold: float | None, allow_repeats: bool) -> NamingOptions:
    from facepipe.pipeline import NamingOptions

    return NamingOptions(threshold_l2=threshold, one_person_per_photo=not allow_repeats)


with_naming = option_group(
    "naming",
    _naming_options,
    [
        click.option(
            "--threshold", type=float, metavar="L2", help="Largest distance at which a face is named."
        ),
        click.option("--allow-repeats", is_flag=True, help="One person may be in a photo several times."),
    ],
)


def _give_key_file(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Put the key's file into the environment, from which galleries are opened."""
    if file is not None:
        from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE

        _set_while_running(context, {KEY_FILE_VARIABLE: str(file), KEY_VARIABLE: None})


key_file_option = click.option(
    "--key-file",
    type=ANY_PATH,
    metavar="FILE",
    expose_value=False,
    callback=_give_key_file,
    help="Key of an encrypted gallery; else $FACEPIPE_GALLERY_KEY.",
)


def _default_address() -> GalleryAddress:
    from facepipe.gallery.address import default_address

    return default_address()


def gallery_option(command: Command, *, required: bool = True) -> Command:
    """Where the gallery is, and its key: `--gallery DIR|URL --key-file FILE`.

    Args:
        command: Gets the place as `gallery_address`.
        required: Fail where none is named and the user has no home folder; otherwise it gets None.
    """
    place = click.option(
        "--gallery",
        "gallery_address",
        type=gallery_place,
        default=_default_address if required else None,
        metavar="DIR|URL",
        show_default="$FACEPIPE_GALLERY, else $FACEPIPE_HOME/gallery",
        help="Folder of the gallery, or postgresql://HOST/DATABASE.",
    )
    return place(key_file_option(command))


def library_options(command: Command) -> Command:
    """Which batch (as `library_folder`) and gallery: `--library DIR --gallery DIR|URL --key-file FILE`."""
    folder = click.option(
        "--library",
        "library_folder",
        type=ANY_PATH,
        required=True,
        metavar="DIR",
        help="Folder of a batch, its --out.",
    )
    return folder(batch_gallery_option(command))


def batch_gallery_option(command: Command) -> Command:
    """The gallery of a batch, and its key, as `gallery_address`; None: the one that the batch remembers."""
    folder = click.option(
        "--gallery",
        "gallery_address",
        type=gallery_place,
        metavar="DIR|URL",
        help="Folder or URL of the gallery.  [default: that of the batch]",
    )
    return folder(key_file_option(command))


force_option = click.option(
    "--force", is_flag=True, help="Replace a file that is there, also one that facepipe did not write so."
)
photos_argument = click.argument("photos", nargs=-1, required=True, type=PHOTOS)
exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Pass over files and folders: cache, *.png, 2019/raw; repeatable.",
)
