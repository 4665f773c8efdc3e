"""What the routes work with."""

from __future__ import annotations

from facepipe.pipeline import FacePipeline
from facepipe.server.database import server_database
from facepipe.server.job_runs import JobRuns
from facepipe.server.keys import ApiKeys
from facepipe.server.recognizer import Recognizer
from facepipe.server.settings import ServerSettings


class Services:
    """The loaded parts of a worker, which all its requests share; `close` closes the pipeline.

    It is no dataclass: msgspec, which checks the parameters of routes, would look into it for types that it
    can't check.

    Args:
        settings: Of the server.
        pipeline: Networks and gallery.

    Attributes:
        settings: Of the server.
        pipeline: Networks and gallery.
        gallery: The pipeline's.
        database: The server's own tables.
        keys: API keys.
        recognizer: Analyzes the photos of requests.
        job_runs: Batches that are gone on with.
    """

    def __init__(self, settings: ServerSettings, pipeline: FacePipeline) -> None:
        self.settings, self.pipeline, self.gallery = settings, pipeline, pipeline.require_gallery()
        self.database = server_database(settings.gallery)
        self.keys = ApiKeys(self.database)
        self.recognizer = Recognizer(pipeline, settings.limits)
        self.job_runs = JobRuns()

    def close(self) -> None:
        """End the work and close the gallery."""
        self.job_runs.close()
        self.recognizer.close()
        self.database.close()
        self.pipeline.close()
