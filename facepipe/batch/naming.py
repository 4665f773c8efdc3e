"""How the faces of a job are named: by a gallery in the state that it is in now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from facepipe.core.faces import Faces, Match
from facepipe.gallery import Gallery
from facepipe.gallery.clustering import LINK_SHARE
from facepipe.gallery.ranking import PersonDistance
from facepipe.pipeline import NamingOptions, name_photos, threshold_of
from facepipe.quality_rules import Reason


class Naming:
    """Names faces by a gallery.

    Args:
        gallery: Open.
        options: As asked for.

    Raises:
        UsageError: A threshold outside 0..2, or neither a threshold nor a default one.
    """

    def __init__(self, gallery: Gallery, options: NamingOptions) -> None:
        self.gallery, self.options = gallery, options
        self._resolved = replace(options, threshold_l2=self.threshold_l2)

    @property
    def threshold_l2(self) -> float:
        """Largest distance at which a face is named, in the gallery as it is now."""
        return threshold_of(self.gallery, self.options.threshold_l2)

    @property
    def group_within_l2(self) -> float:
        """Mean distance up to which unknown faces are likely one person's.

        A share of the threshold asked for or the encoder's. The gallery's falls with every person named, and
        groups would fall apart with it.
        """
        encoder_l2 = self.gallery.encoder.threshold_l2
        return LINK_SHARE * (self.options.threshold_l2 or encoder_l2 or self.threshold_l2)

    @property
    def key(self) -> str:
        """Identifies what faces are named by: where the key is the same, so would all names be."""
        naming = options_to_dict(self._resolved) | {"gallery": self.gallery.state}
        return hashlib.sha256(json.dumps(naming, sort_keys=True).encode()).hexdigest()

    def refresh(self) -> None:
        """Take the threshold of the gallery as it is now."""
        self._resolved = replace(self.options, threshold_l2=self.threshold_l2)

    def __call__(self, photos: Sequence[tuple[Faces, Sequence[Reason | None]]]) -> list[list[Match]]:
        """Match the faces of photos; those with a reason are not compared."""
        return name_photos(self.gallery, photos, self._resolved)


def options_to_dict(options: NamingOptions) -> dict[str, Any]:
    """Return values that JSON holds."""
    return asdict(options) | {"person_distance": options.person_distance.value}


def options_of(values: dict[str, Any]) -> NamingOptions:
    """Read `options_to_dict`."""
    return NamingOptions(**values | {"person_distance": PersonDistance(values["person_distance"])})
