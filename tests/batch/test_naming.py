"""By which thresholds the faces of a job are named and grouped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors

from facepipe.batch.naming import Naming
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.clustering import LINK_SHARE
from facepipe.pipeline import NamingOptions, card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card


def test_groups_are_as_wide_whatever_the_gallery_holds(tmp_path: Path) -> None:
    encoder = card_identity(load_card(DEFAULT_ENCODER).card)
    with Gallery.open(tmp_path, encoder, create=True) as gallery:
        naming = Naming(gallery, NamingOptions())
        threshold_l2, within_l2 = naming.threshold_l2, naming.group_within_l2
        gallery.add("Ada", [NewTemplate(vector, source="") for vector in person_vectors(1, 20)])
        assert naming.threshold_l2 < threshold_l2
        assert naming.group_within_l2 == within_l2 == pytest.approx(LINK_SHARE * encoder.threshold_l2)


def test_groups_follow_the_threshold_asked_for(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "measured", ENCODER, create=True) as gallery:
        naming = Naming(gallery, NamingOptions(threshold_l2=0.8))
        assert naming.group_within_l2 == pytest.approx(LINK_SHARE * 0.8)
    with Gallery.open(tmp_path / "own", replace(ENCODER, threshold_l2=0.0), create=True) as gallery:
        gallery.set_threshold(0.7)
        assert Naming(gallery, NamingOptions()).group_within_l2 == pytest.approx(LINK_SHARE * 0.7)
