"""What a batch leaves: records, pictures, sidecars, sorted folders, and a report that a browser shows."""

from __future__ import annotations

import csv
import json
import os
import queue
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pytest
from batch_helpers import NAME, enroll_her
from cli_helpers import facepipe
from pipeline_helpers import noise, side_by_side
from xmp_helpers import exiftool_json, needs_exiftool

from facepipe.batch.job import Job
from facepipe.batch.models import ReportOptions
from facepipe.batch.page import write_report
from facepipe.batch.results import ResultOptions, write_results
from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import FacePipeline
from facepipe.reports.records import CSV_COLUMNS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("results") / "gallery"
    enroll_her(folder, astronaut)
    return folder


@pytest.fixture
def folder(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """Her in three photos, one of them twice the same under another folder; nobody; and a broken file."""
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    write_image(folder / "a" / "her.png", astronaut)
    write_image(folder / "b" / "her.png", side_by_side(astronaut))
    write_image(folder / "b" / "nobody.png", noise(1, 200, 300))
    (folder / "b" / "broken <!--<script>.jpg").write_bytes(b"no photo")
    return folder


def run(folder: Path, gallery: Path, *more: str) -> Path:
    """The first time one broken photo is told by the exit code."""
    out = folder.parent / "out"
    expected = 0 if out.exists() else 3
    assert facepipe("batch", folder, "--gallery", gallery, "--out", out, *more).code == expected
    return out


def test_records_have_the_documented_columns(folder: Path, gallery: Path) -> None:
    out = run(folder, gallery)
    records = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Path(records[0]["photo"]).name == "her.png"
    assert [record["error"] is None for record in records] == [True, False, True, True]
    with (out / "faces.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    faces = [face for record in records for face in record["faces"]]
    assert [row["name"] for row in rows if row["face"]] == [face["name"] or "" for face in faces]


def test_pictures_and_sidecars_follow_the_names(folder: Path, gallery: Path) -> None:
    out = run(folder, gallery, "--annotate", "--crops", "--xmp")
    annotated = read_image(out / "annotated" / "a" / "her.png")
    assert not np.array_equal(annotated, read_image(folder / "a" / "her.png"))
    crop = out / "crops" / "a" / f"her.png_face0_{NAME}.jpg"
    sidecar = folder / "a" / "her.png.xmp"
    assert crop.exists()
    assert NAME in sidecar.read_text()
    before = (out / "annotated" / "a" / "her.png").stat().st_mtime_ns
    run(folder, gallery, "--annotate", "--crops", "--xmp")
    assert (out / "annotated" / "a" / "her.png").stat().st_mtime_ns == before, (
        "what is there is not made again"
    )
    crop.unlink()
    assert facepipe("gallery", "rename", NAME, "Colonel", "--gallery", gallery).code == 0
    try:
        run(folder, gallery, "--annotate", "--crops", "--xmp")
    finally:
        facepipe("gallery", "rename", "Colonel", NAME, "--gallery", gallery)
    assert [path.name for path in (out / "crops" / "a").glob("*face0*")] == ["her.png_face0_Colonel.jpg"]
    assert NAME not in sidecar.read_text()


@pytest.mark.parametrize("option", ["--xmp", "--xmp-tags", "--annotate", "--crops", "--xmp-embed"])
def test_nothing_is_written_of_a_photo_that_was_replaced_since(
    folder: Path, gallery: Path, astronaut: UInt8Array, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    if option == "--xmp-embed" and shutil.which("exiftool") is None:
        pytest.skip("needs exiftool")
    out = run(folder, gallery)
    replaced, touched = folder / "a" / "her.png", folder / "b" / "her.png"
    write_image(replaced, astronaut[:, ::-1])
    os.utime(touched, (1, 1))
    xmp, xmp_tags = option == "--xmp", option == "--xmp-tags"
    options = ResultOptions(
        option == "--annotate", option == "--crops", xmp, xmp_tags, option == "--xmp-embed"
    )
    before = {*folder.rglob("*"), *out.rglob("*")}
    with Job(out) as job:
        assert write_results(job, 1.0, options) == 1
    new = [path.relative_to(tmp).as_posix() for tmp in (folder, out) for path in {*tmp.rglob("*")} - before]
    assert any("b/her.png" in name for name in new)
    assert not any("a/her.png" in name for name in new)
    assert f"{replaced}: it has changed since it was analyzed; run `facepipe batch` again" in caplog.text
    run(folder, gallery, option)
    new = [path.relative_to(tmp).as_posix() for tmp in (folder, out) for path in {*tmp.rglob("*")} - before]
    assert any("a/her.png" in name for name in new)


def test_keywords_come_with_the_option_and_follow_the_names_without_it(folder: Path, gallery: Path) -> None:
    sidecar, keyword = folder / "a" / "her.png.xmp", "<rdf:li>{}</rdf:li>"
    run(folder, gallery, "--xmp")
    assert keyword.format(NAME) not in sidecar.read_text()
    run(folder, gallery, "--xmp-tags")
    assert sidecar.read_text().count(keyword.format(NAME)) == 2  # dc:subject and PersonInImage
    assert facepipe("gallery", "rename", NAME, "Colonel", "--gallery", gallery).code == 0
    try:
        run(folder, gallery, "--xmp")
    finally:
        facepipe("gallery", "rename", "Colonel", NAME, "--gallery", gallery)
    assert NAME not in sidecar.read_text()
    assert sidecar.read_text().count(keyword.format("Colonel")) == 2


@needs_exiftool
def test_copies_with_names_follow_the_names_and_photos_stay_as_they_are(folder: Path, gallery: Path) -> None:
    before = {photo: photo.read_bytes() for photo in folder.rglob("*") if photo.is_file()}
    out = run(folder, gallery, "--xmp-embed")
    copies = sorted((out / "embedded").rglob("*.*"))
    assert [copy.relative_to(out / "embedded").as_posix() for copy in copies] == ["a/her.png", "b/her.png"]
    (record,) = exiftool_json("-PersonInImage", "-RegionInfo", copies[0])
    assert record["PersonInImage"] == [NAME]
    assert [region["Name"] for region in record["RegionInfo"]["RegionList"]] == [NAME]
    written = [copy.stat().st_ino for copy in copies]
    run(folder, gallery, "--xmp-embed")
    assert [copy.stat().st_ino for copy in copies] == written, "what is there is not made again"
    assert facepipe("gallery", "rename", NAME, "Colonel", "--gallery", gallery).code == 0
    try:
        run(folder, gallery, "--xmp-embed")
    finally:
        facepipe("gallery", "rename", "Colonel", NAME, "--gallery", gallery)
    assert NAME.encode() not in copies[0].read_bytes()
    assert b"Colonel" in copies[0].read_bytes()
    assert {photo: photo.read_bytes() for photo in before} == before
    copies[1].write_text("a file of the user's")
    words = ("batch", folder, "--gallery", gallery, "--out", out, "--xmp-embed")
    told = facepipe(*words)
    assert (told.code, f"{copies[1]}: exists, and is not a copy" in told.err) == (3, True)
    assert copies[1].read_text() == "a file of the user's"


@pytest.mark.parametrize(
    "blocked",
    [
        "annotated/a/her.png",
        "annotated",
        f"crops/a/her.png_face0_{NAME}.jpg",
        "crops",
        "../photos/a/her.png.xmp",
        "results.jsonl",
        "faces.csv",
        "report.html",
    ],
)
def test_an_output_that_fails_is_told_and_tried_again(folder: Path, gallery: Path, blocked: str) -> None:
    """A folder in a file's place, a file in a folder's: nothing can be written there, whoever asks."""
    out, flags = folder.parent / "out", ("--annotate", "--crops", "--xmp")
    words = ["batch", folder, "--gallery", gallery, "--out", out, *flags]
    (folder / "b" / "broken <!--<script>.jpg").unlink()
    place = Path(os.path.normpath(out / blocked))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix:
        place.mkdir()
    else:
        place.write_text("a file")
    expected = {out / "results.jsonl", out / "faces.csv", out / "report.html", folder / "b" / "her.png.xmp"}
    expected |= {out / "annotated" / "b" / "her.png", *(folder / name / "her.png.xmp" for name in "ab")}
    for _ in range(2):
        told = facepipe(*words)
        assert told.code == 3, told.err
        assert place.name in told.err
        assert "1 output could not be written; the next run tries again" in told.err
        missing = {path for path in expected if not path.is_file()}
        assert all(path == place or place in path.parents for path in missing), "the rest goes on"
    if place.suffix:
        place.rmdir()
    else:
        place.unlink()
    assert facepipe(*words).code == 0
    assert all(path.is_file() for path in expected)


def test_a_photo_that_can_not_be_read_again_is_an_output_that_fails(
    folder: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, gallery)

    def gone(path: Path, *_: object, **__: object) -> UInt8Array:
        raise PhotoError(f"{path}: no such file")

    monkeypatch.setattr("facepipe.batch.results.read_reduced", gone)
    told = facepipe("batch", folder, "--gallery", gallery, "--out", folder.parent / "out", "--annotate")
    assert (told.code, told.err.count("no such file")) == (3, 2)
    assert "2 outputs could not be written" in told.err


@pytest.mark.parametrize(("flag", "is_link"), [((), False), (("--link",), True)], ids=["copy", "link"])
def test_sorting(folder: Path, gallery: Path, flag: tuple[str, ...], is_link: bool) -> None:
    out, target = run(folder, gallery), folder.parent / "sorted"
    dry = facepipe("sort", out, "--to", target, *flag, "--dry-run")
    assert not target.exists()
    done = facepipe("sort", out, "--to", target, *flag)
    assert done.lines == dry.lines
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.png"))
    assert found == [f"{NAME}/her (2).png", f"{NAME}/her.png"]
    assert (target / NAME / "her.png").is_symlink() == is_link
    assert (target / NAME / "her.png").read_bytes() == (folder / "a" / "her.png").read_bytes()
    assert (target / NAME / "her (2).png").read_bytes() == (folder / "b" / "her.png").read_bytes()
    assert facepipe("sort", out, "--to", target, *flag).lines == []


def test_moving_takes_the_sidecar_along_and_loses_nothing(folder: Path, gallery: Path) -> None:
    out, target = run(folder, gallery, "--xmp"), folder.parent / "sorted"
    contents = {path: path.read_bytes() for path in sorted(folder.rglob("her.png"))}
    assert facepipe("sort", out, "--to", target, "--move").code == 0
    assert not list(folder.rglob("her.png"))
    assert {path.read_bytes() for path in target.rglob("her*.png")} == set(contents.values())
    assert (target / NAME / "her.png.xmp").exists()
    assert (folder / "b" / "nobody.png").exists()
    assert facepipe("sort", out, "--to", target, "--link", "--move").code == 2


def test_the_report_shows_people_and_escapes_names(folder: Path, gallery: Path, tmp_path: Path) -> None:
    report = run(folder, gallery) / "report.html"
    page = browser(report, tmp_path, "--dump-dom").decode()
    assert "report-data" in page
    shown = page.split("<script")[0]
    assert NAME in shown
    assert 'src="data:image/jpeg;base64,' in shown
    assert "4 photos, 3 faces: 2 known" in shown
    assert "1 photo failed" in shown
    picture = tmp_path / "screen.png"
    browser(report, tmp_path, f"--screenshot={picture}", "--window-size=1000,700")
    screen = read_image(picture)
    assert screen.shape == (700, 1000, 3)
    main = screen[60:200, 300:460].reshape(-1, 3)
    assert len(np.unique(main, axis=0)) > 500, "a face is in colours, an empty page is not"


def browser(page: Path, folder: Path, *arguments: str) -> bytes:
    words = [*browser_words(folder), "--virtual-time-budget=3000", *arguments, page.as_uri()]
    return subprocess.run(words, capture_output=True, timeout=120, check=True).stdout


def browser_words(folder: Path) -> list[str]:
    """A browser that keeps what it keeps in `folder`, and speaks to nobody of itself."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    return ["env", f"HOME={folder}", CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'browser'}"]


_ASK = """<script>
function ask(tries) {
  if (!(READY) && tries) setTimeout(ask, 100, tries - 1);
  else parent.postMessage((() => { SCRIPT })(), "*");
}
ask(300);
</script>"""
_FRAME = """<!doctype html><body><iframe src="report" style="width:WIDTHpx;height:844px"></iframe><script>
onmessage = event => fetch("got", { method: "POST", body: JSON.stringify(event.data) });
</script>"""


def measured(report: Path, width_px: int, script: str, ready: str = "true") -> dict[str, Any]:
    """What a script gives in a report that a browser shows in a frame of this width and 844 px of height.

    It is run when `ready` is true, or has not become so in 30 s.
    """
    ask = _ASK.replace("READY", ready).replace("SCRIPT", script)
    pages = {
        "/frame": _FRAME.replace("WIDTH", str(width_px)).encode(),
        "/report": report.read_bytes() + ask.encode(),
    }
    got: queue.Queue[bytes] = queue.Queue()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def do_POST(self) -> None:
            got.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [*browser_words(report.parent.parent), "--remote-debugging-port=0", "--window-size=1400,1000"]
        url = f"http://127.0.0.1:{server.server_port}/frame"
        process = subprocess.Popen([*words, url], stderr=subprocess.DEVNULL)
        try:
            return dict(json.loads(got.get(timeout=90)))
        finally:
            process.terminate()
            process.wait(timeout=30)
            server.shutdown()


GEOMETRY = """
    const box = element => element.getBoundingClientRect();
    const avatars = [...document.querySelectorAll("nav img")];
    return {
        firstFaceEnds: box(document.querySelector(".card img")).bottom,
        pageWidth: document.documentElement.scrollWidth,
        navHeight: box(document.querySelector("nav")).height,
        avatars: avatars.filter(avatar => avatar.naturalWidth > 0).length,
        smallestButton: Math.min(...[...document.querySelectorAll("nav button")].map(b => box(b).height)),
    };
"""


def test_the_report_fits_a_phone(folder: Path, gallery: Path) -> None:
    """The first face is on the first screen, below one row of people, and nothing is cut off at the side."""
    report = run(folder, gallery) / "report.html"
    ready = "[...document.images].filter(i => i.className === 'avatar' && i.naturalWidth > 0).length > 1"
    phone = measured(report, 390, GEOMETRY, ready)
    assert phone["firstFaceEnds"] < 500
    assert phone["pageWidth"] <= 390
    assert phone["navHeight"] < 150
    assert phone["avatars"] >= 2
    assert phone["smallestButton"] >= 44
    desktop = measured(report, 1280, GEOMETRY, ready)
    assert desktop["firstFaceEnds"] < 250
    assert desktop["navHeight"] > 200


def test_the_report_by_keyboard_and_in_words(folder: Path, gallery: Path) -> None:
    """Focus stays where it is when a view is chosen; pictures are described, or stand beside a name."""
    report = run(folder, gallery) / "report.html"
    found = measured(
        report,
        1280,
        """
        const button = [...document.querySelectorAll("nav button")].find(b => b.title === "Unknown faces");
        button.focus();
        button.click();
        const focus = document.activeElement === button, current = button.getAttribute("aria-current");
        const alt = document.querySelector(".card img").alt;
        document.querySelector(".card").click();
        const large = document.querySelector("dialog[open] img").alt;
        const faint = getComputedStyle(document.querySelector(".card small")).color;
        return { focus, current, alt, large, faint, title: document.querySelector("#title").textContent };
        """,
    )
    assert (found["focus"], found["current"], found["title"]) == (True, "true", "Unknown faces (1)")
    assert found["alt"] == "Face in b/her.png"
    assert NAME in found["large"]
    assert contrast_with_white(found["faint"]) >= 4.5


def contrast_with_white(css: str) -> float:
    """Of WCAG 2, for `rgb(r, g, b)`."""
    shares = [int(value) / 255 for value in re.findall(r"\d+", css)[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 1.05 / (float(np.dot(linear, (0.2126, 0.7152, 0.0722))) + 0.05)


def test_a_phone_shows_more_where_one_scrolls_down(folder: Path, gallery: Path) -> None:
    """Faces beyond the first pages come when their place comes into view."""
    shutil.copy(folder / "a" / "her.png", folder / "b" / "again.png")
    report = run(folder, gallery) / "report.html"
    page = report.read_text(encoding="utf-8")
    for old, new in (
        ("const PAGE = 120", "const PAGE = 1"),
        ("AHEAD_PX = 1200", "AHEAD_PX = 0"),
        ("</style>", "#grid { grid-template-columns: 1fr !important } .card { min-height: 2000px }</style>"),
    ):
        assert old in page
        page = page.replace(old, new)
    report.write_text(page, encoding="utf-8")
    cards = "document.querySelectorAll('.card').length"
    script, ready = f"return {{ cards: {cards} }};", f"(scrollTo(0, 1e6), {cards} > 2)"
    assert measured(report, 390, script, ready)["cards"] == 3


def report_data(page: str) -> dict[str, Any]:
    return dict(json.loads(page.split('id="report-data">')[1].split("</script>")[0]))


def test_the_report_names_photos_below_their_common_folder(folder: Path, gallery: Path) -> None:
    """And links to them relative to itself: both may move together, and no absolute path is in it."""
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/a/caf\xe9 #1%.png"))
    shutil.copy(folder / "a" / "her.png", odd)
    out = run(folder, gallery)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert str(folder.parent) not in page
    assert folder.parent.as_uri() not in page
    data = report_data(page)
    assert [photo["path"] for photo in data["photos"]] == [
        "a/caf\\udce9 #1%.png",
        "a/her.png",
        "b/broken <!--<script>.jpg",
        "b/her.png",
        "b/nobody.png",
    ]
    assert data["photos"][2]["error"].startswith("not a photo")
    reached = [data["url"] + photo.get("url", quote(photo["path"])) for photo in data["photos"]]
    assert all((out / os.fsdecode(unquote_to_bytes(url))).exists() for url in reached), reached
    script = "enlarge(1, 0); return { url: document.querySelector('dialog a').getAttribute('href') };"
    assert measured(out / "report.html", 1280, script)["url"] == "../photos/a/her.png"


def test_photos_of_several_drives_have_absolute_paths(
    folder: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows there is no common folder then."""
    run(folder, gallery)

    def no_way(*_: object) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("facepipe.batch.page.os.path.relpath", no_way)
    with Job(folder.parent / "out") as job:
        write_report(job, ReportOptions(1.0, paths=True))
    data = report_data((folder.parent / "out" / "report.html").read_text(encoding="utf-8"))
    assert data["photos"][0]["path"] == str(folder / "a" / "her.png")
    assert data["url"] + data["photos"][0]["url"] == (folder / "a" / "her.png").as_uri()


def test_a_report_to_share_has_no_paths(folder: Path, gallery: Path) -> None:
    out = run(folder, gallery, "--no-paths")
    page = (out / "report.html").read_text(encoding="utf-8")
    for secret in (str(folder.parent), "her.png", "nobody", "script>.jpg", "photos/"):
        assert secret not in page
    shown = measured(
        out / "report.html",
        390,
        """
        enlarge(0, 0);
        const large = document.querySelector("dialog p").textContent, search = $("where").offsetParent;
        views.find(view => view.name === "Failed").button.click();
        return { large, search, failed: $("grid").textContent, link: document.querySelector("dialog a") };
        """,
    )
    assert (shown["large"], shown["search"], shown["link"]) == ("Photo 1", None, None)
    assert shown["failed"].startswith("Photo 2: not a photo")


def test_a_report_is_small(folder: Path, gallery: Path) -> None:
    """A photo of one large face costs less than 10 kB: its preview and its face."""
    run(folder, gallery)
    with_one = (folder.parent / "out" / "report.html").stat().st_size
    write_image(folder / "more.png", read_image(folder / "a" / "her.png")[:, ::-1])
    run(folder, gallery)
    assert (folder.parent / "out" / "report.html").stat().st_size - with_one < 10_000


def test_the_report_loads_nothing_from_anywhere(folder: Path, gallery: Path) -> None:
    text = (run(folder, gallery) / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "broken <!--" not in text


def test_strangers_are_grouped_in_the_report(folder: Path, tmp_path: Path) -> None:
    """Where nobody is known, the astronaut is one unknown person in two photos; beside herself, another."""
    FacePipeline.load(tmp_path / "empty", create_gallery=True).close()
    text = (run(folder, tmp_path / "empty") / "report.html").read_text(encoding="utf-8")
    data = report_data(text)
    groups = [face["group"] for photo in data["photos"] for face in photo.get("faces", ())]
    assert groups[0] == 1
    assert groups.count(1) == 2
