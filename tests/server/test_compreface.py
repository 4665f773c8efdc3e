"""CompreFace's own Python client, unchanged, against a real server."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from server_helpers import Server, as_jpeg

from facepipe.core.faces import UInt8Array


@pytest.fixture(scope="session")
def sdk() -> Any:
    """The client's class."""
    # Its pinned requests-toolbelt imports a module that urllib3 2 lacks, and does not use it.
    absent = ModuleType("urllib3.contrib.appengine")
    sys.modules.setdefault(absent.__name__, absent)
    import urllib3.contrib

    if not hasattr(urllib3.contrib, "appengine"):
        urllib3.contrib.appengine = absent  # type: ignore[attr-defined]
    return import_module("compreface").CompreFace


@pytest.fixture
def face_service(server: Server, sdk: Any) -> Any:
    """The recognition service of an empty gallery."""
    host, port = server.url.rsplit(":", 1)
    service = sdk(host, port).init_face_recognition("any-key")
    service.get_subjects().delete_all()
    return service


@pytest.fixture
def photos(tmp_path: Path, portrait: bytes, mirrored: bytes, astronaut: UInt8Array) -> dict[str, str]:
    """Files: a portrait, another of her, the two of them, nobody."""
    contents = {
        "portrait": portrait,
        "mirrored": mirrored,
        "two": as_jpeg(np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)),
        "nobody": as_jpeg(np.full((200, 200, 3), 128, np.uint8)),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    return {name: str(tmp_path / f"{name}.jpg") for name in contents}


def test_subjects_are_added_renamed_merged_and_deleted(face_service: Any, photos: dict[str, str]) -> None:
    subjects = face_service.get_subjects()
    assert subjects.add("Ada Lovelace") == {"subject": "Ada Lovelace"}
    assert subjects.add("Ada Lovelace")["code"] == 26
    assert subjects.update("Ada Lovelace", "Ada") == {"updated": True}
    assert subjects.list() == {"subjects": ["Ada"]}
    faces = face_service.get_face_collection()
    faces.add(photos["portrait"], "Ada")
    faces.add(photos["mirrored"], "Eileen")
    assert subjects.list() == {"subjects": ["Ada", "Eileen"]}
    assert subjects.update("Ada", "Eileen") == {"updated": True}
    assert subjects.list() == {"subjects": ["Eileen"]}
    assert len(faces.list()["faces"]) == 2
    assert subjects.update("Nobody", "Somebody")["code"] == 11
    assert subjects.delete("Nobody")["code"] == 11
    assert subjects.delete("Eileen") == {"subject": "Eileen"}
    assert subjects.delete_all() == {"deleted": 0}


def test_examples_are_added_listed_verified_and_deleted(face_service: Any, photos: dict[str, str]) -> None:
    faces = face_service.get_face_collection()
    added = faces.add(photos["portrait"], "Eileen Collins", {"det_prob_threshold": 0.8})
    assert added["subject"] == "Eileen Collins"
    UUID(added["image_id"])
    assert faces.add(photos["portrait"], "Eileen Collins") == added
    listed = faces.list()
    assert listed["faces"] == [added]
    assert (listed["total_elements"], listed["total_pages"], listed["page_number"]) == (1, 1, 0)
    (found,) = faces.verify(photos["mirrored"], added["image_id"])["result"]
    assert found["similarity"] > 0.9
    assert faces.verify(photos["mirrored"], str(UUID(int=12345678)))["code"] == 11
    assert faces.delete(added["image_id"]) == added
    assert faces.delete(added["image_id"])["code"] == 11
    faces.add(photos["portrait"], "Eileen Collins")
    faces.add(photos["mirrored"], "Eileen Collins")
    assert faces.delete_all("Eileen Collins") == {"deleted": 2}


def test_recognizes_faces_with_options(face_service: Any, photos: dict[str, str]) -> None:
    faces = face_service.get_face_collection()
    faces.add(photos["portrait"], "Eileen")
    faces.add(photos["mirrored"], "Mirror")
    options = {
        "limit": 1,
        "prediction_count": 2,
        "face_plugins": "calculator,landmarks",
        "det_prob_threshold": 0.5,
        "status": True,
    }
    answer = face_service.recognize(photos["two"], options)
    (face,) = answer["result"]
    assert [one["subject"] for one in face["subjects"]] in (["Eileen", "Mirror"], ["Mirror", "Eileen"])
    assert face["subjects"][0]["similarity"] > 0.99
    assert (len(face["embedding"]), len(face["landmarks"])) == (128, 5)
    assert set(face["box"]) == {"probability", "x_min", "y_min", "x_max", "y_max"}
    assert set(answer["plugins_versions"]) == {"detector", "calculator"}
    assert len(face_service.recognize(photos["two"])["result"]) == 2
    assert face_service.recognize(photos["nobody"])["code"] == 28
    assert "age" in face_service.recognize(photos["two"], {"face_plugins": "age"})["message"]
    assert faces.add(photos["two"], "Two")["code"] == 31
    assert faces.add(photos["nobody"], "Nobody")["code"] == 28


def test_detects_and_verifies(server: Server, sdk: Any, photos: dict[str, str]) -> None:
    host, port = server.url.rsplit(":", 1)
    detection = sdk(host, port).init_face_detection("any-key")
    assert len(detection.detect(photos["two"])["result"]) == 2
    (face,) = detection.detect(photos["portrait"], {"face_plugins": "calculator"})["result"]
    assert len(face["embedding"]) == 128
    verification = sdk(host, port).init_face_verification("any-key")
    (answer,) = verification.verify(photos["portrait"], photos["two"])["result"]
    assert [match["similarity"] > 0.9 for match in answer["face_matches"]] == [True, True]
    assert answer["source_image_face"]["box"]["probability"] > 0.9
    assert verification.verify(photos["nobody"], photos["two"])["code"] == 28
