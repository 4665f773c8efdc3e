"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from facepipe.gallery import Gallery
from facepipe.pipeline import FacePipeline
from facepipe.server.keys import ApiKeys
from facepipe.server.recognizer import Recognizer
from facepipe.server.settings import SERVER_FILE, ServerSettings


@dataclass(frozen=True, slots=True, eq=False)
class Services:
    """The loaded parts of a worker, which all its requests share.

    Attributes:
        settings: Of the server.
        pipeline: Networks and gallery.
        gallery: The pipeline's.
        keys: API keys.
        recognizer: Analyzes the photos of requests.
    """

    settings: ServerSettings
    pipeline: FacePipeline
    gallery: Gallery
    keys: ApiKeys
    recognizer: Recognizer

    @classmethod
    def of(cls, settings: ServerSettings, pipeline: FacePipeline) -> Services:
        """Put the parts together; `close` closes the pipeline."""
        assert pipeline.gallery is not None
        keys = ApiKeys(settings.gallery / SERVER_FILE)
        return cls(settings, pipeline, pipeline.gallery, keys, Recognizer(pipeline, settings.limits))

    def close(self) -> None:
        """End the work and close the gallery."""
        self.recognizer.close()
        self.pipeline.close()
