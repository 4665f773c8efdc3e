"""XMP sidecars: what photo managers read, beside what they and others have written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import faces_at

from facepipe.errors import OutputError
from facepipe.faces import Faces, Match
from facepipe.xmp import sidecar_path, write_sidecar

SIZE_WH = (400, 200)
TAGS = ("-Validate", "-RegionInfo", "-Rating", "-Subject")
needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")

FOREIGN = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <!-- made by hand -->
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
    xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#" xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#"
    xmp:Rating="5">
   <dc:subject><rdf:Bag><rdf:li>holiday</rdf:li></rdf:Bag></dc:subject>
   <mwg-rs:Regions rdf:parseType="Resource">
    <mwg-rs:AppliedToDimensions stDim:w="{w}" stDim:h="{h}" stDim:unit="pixel"/>
    <mwg-rs:RegionList><rdf:Bag>
     <rdf:li><rdf:Description mwg-rs:Name="Grandmother" mwg-rs:Type="Face">
      <mwg-rs:Area stArea:x="0.5" stArea:y="0.5" stArea:w="0.1" stArea:h="0.2" stArea:unit="normalized"/>
     </rdf:Description></rdf:li>
    </rdf:Bag></mwg-rs:RegionList>
   </mwg-rs:Regions>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def named(*people: tuple[str | None, tuple[float, float, float, float]]) -> Faces:
    matches = [Match(name, 0.5, 1.0) for name, _ in people]
    return faces_at(*(box for _, box in people)).with_matches(matches)


HER = ("Eileen Collins", (40.0, 20.0, 120.0, 100.0))
AT_GRANDMOTHER = ("Somebody Else", (184.0, 84.0, 220.0, 120.0))


def read(sidecar: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["exiftool", "-json", "-struct", *TAGS, str(sidecar)],
        capture_output=True,
        text=True,
        check=True,
    )
    record: dict[str, Any] = json.loads(done.stdout)[0]
    return record


@needs_exiftool
def test_exiftool_reads_the_regions_as_valid(tmp_path: Path) -> None:
    sidecar = write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER, (None, (200, 50, 240, 90))))
    assert sidecar == tmp_path / "photo.jpg.xmp"
    record = read(sidecar)
    assert record["Validate"] == "OK"
    info = record["RegionInfo"]
    assert info["AppliedToDimensions"] == {"W": 400, "H": 200, "Unit": "pixel"}
    (region,) = info["RegionList"]
    area = {"X": 0.2, "Y": 0.3, "W": 0.2, "H": 0.4, "Unit": "normalized"}
    assert (region["Name"], region["Type"], region["Area"]) == ("Eileen Collins", "Face", area)


@needs_exiftool
def test_what_others_wrote_is_kept(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(FOREIGN.format(w=800, h=400), encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        write_sidecar(photo, SIZE_WH, named(HER, AT_GRANDMOTHER))
        record = read(sidecar_path(photo))
        assert record["Validate"] == "OK"
        assert (record["Rating"], record["Subject"]) == (5, ["holiday"])
        assert [region["Name"] for region in record["RegionInfo"]["RegionList"]] == ["Grandmother", HER[0]]
        assert "made by hand" in sidecar_path(photo).read_text(encoding="utf-8")


@needs_exiftool
def test_regions_of_ours_follow_the_names(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(FOREIGN.format(w=800, h=400), encoding="utf-8")
    write_sidecar(photo, SIZE_WH, named(HER))
    write_sidecar(photo, SIZE_WH, named(("Colonel Collins", HER[1])))
    names = [region["Name"] for region in read(sidecar_path(photo))["RegionInfo"]["RegionList"]]
    assert names == ["Grandmother", "Colonel Collins"]
    write_sidecar(photo, SIZE_WH, named((None, HER[1])))
    names = [region["Name"] for region in read(sidecar_path(photo))["RegionInfo"]["RegionList"]]
    assert names == ["Grandmother"]


def test_nobody_named_no_sidecar(tmp_path: Path) -> None:
    assert write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named((None, HER[1]))) is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("My diary", "can't be read as XMP"),
        ("<html/>", "this is no XMP"),
        (FOREIGN.format(w=200, h=400), "of a photo of another shape"),
        (FOREIGN.format(w=800, h=400)[:-400], "can't be read as XMP"),
    ],
    ids=["no XML", "no XMP", "photo was turned since", "cut off"],
)
def test_a_sidecar_that_is_not_understood_is_left_alone(tmp_path: Path, content: str, told: str) -> None:
    sidecar = tmp_path / "photo.jpg.xmp"
    sidecar.write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=f"photo.jpg.xmp: .*{told}"):
        write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER))
    assert sidecar.read_text(encoding="utf-8") == content


def test_entities_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    doctype = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{secret.as_uri()}">]>\n'
    body = FOREIGN.format(w=800, h=400).replace("holiday", "&e;").split("\n", 1)[1]
    (tmp_path / "photo.jpg.xmp").write_text(doctype + body, encoding="utf-8")
    write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER))
    assert "the secret" not in (tmp_path / "photo.jpg.xmp").read_text(encoding="utf-8")
