"""The reference of every setting is that of the code."""

from __future__ import annotations

from paths import ROOT

from facepipe.training.reference import settings_page


def test_the_page_of_settings_is_up_to_date() -> None:
    made = "python -m facepipe.training.reference > docs/settings.md"
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), made
