"""What the tests of `facepipe.xmp` share: regions as photo managers write them, by exiftool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from PIL import Image, ImageOps

from facepipe.core.faces import UInt8Array
from facepipe.xmp.regions import Region

ORIENTATIONS = range(1, 9)
EXIF_ORIENTATION = 0x0112
INVERSE = {6: 8, 8: 6}
needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
needs_exiv2 = pytest.mark.skipif(shutil.which("exiv2") is None, reason="exiv2 is not installed")


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
"""A sidecar as Lightroom writes it: fill in `w` and `h`."""

APPLE = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
    xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#" xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#">
   <mwg-rs:Regions rdf:parseType="Resource">
    <mwg-rs:AppliedToDimensions rdf:parseType="Resource">
     <stDim:h>400</stDim:h><stDim:w>800</stDim:w><stDim:unit>pixel</stDim:unit>
    </mwg-rs:AppliedToDimensions>
    <mwg-rs:RegionList><rdf:Seq>
     <rdf:li rdf:parseType="Resource">
      <mwg-rs:Area rdf:parseType="Resource">
       <stArea:x>0.2</stArea:x><stArea:y>0.3</stArea:y><stArea:w>0.2</stArea:w><stArea:h>0.4</stArea:h>
       <stArea:unit>normalized</stArea:unit>
      </mwg-rs:Area>
      <mwg-rs:Type>{type}</mwg-rs:Type><mwg-rs:Name>{name}</mwg-rs:Name>
     </rdf:li>
    </rdf:Seq>{more}</mwg-rs:RegionList>
   </mwg-rs:Regions>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""
"""A sidecar as Apple's programs write it: fill in `type`, `name` and what stands behind the list."""


def exiftool(*arguments: str | Path, cwd: Path | None = None) -> None:
    """Run exiftool; files are changed in place."""
    subprocess.run(["exiftool", "-q", "-overwrite_original", *map(str, arguments)], check=True, cwd=cwd)


def exiftool_json(*arguments: str | Path) -> list[dict[str, Any]]:
    """What exiftool reads: a record for each file."""
    command = ["exiftool", "-json", "-struct", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


def mwg(*regions: Region, size_wh: tuple[int, int] | None = None, kind: str = "Face") -> str:
    """The argument by which exiftool writes regions of the Metadata Working Group."""
    listed = ",".join(
        f"{{Name={_escaped(region.name)},Type={kind},"
        f"Area={{X={region.x},Y={region.y},W={region.w},H={region.h},Unit=normalized}}}}"
        for region in regions
    )
    applied = "" if size_wh is None else f"AppliedToDimensions={{W={size_wh[0]},H={size_wh[1]},Unit=pixel}},"
    return f"-RegionInfo={{{applied}RegionList=[{listed}]}}"


def mp(*regions: Region) -> str:
    """The argument by which exiftool writes regions of Microsoft's form."""
    listed = []
    for region in regions:
        left, top, _, _ = region.sides
        rectangle = "|, ".join(f"{number:.6f}" for number in (left, top, region.w, region.h))
        listed.append(f"{{PersonDisplayName={_escaped(region.name)},Rectangle={rectangle}}}")
    return f"-RegionInfoMP={{Regions=[{','.join(listed)}]}}"


def _escaped(name: str) -> str:
    return "".join(f"|{letter}" if letter in "|,{}[]" else letter for letter in name)


def save_turned(photo: UInt8Array, orientation: int, path: Path) -> None:
    """Save an upright photo as it is stored with an EXIF orientation."""
    turned = Image.fromarray(photo)
    turned.getexif()[EXIF_ORIENTATION] = INVERSE.get(orientation, orientation)
    stored = ImageOps.exif_transpose(turned)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(path, exif=exif)


def packet(*regions: Region, size_wh: tuple[int, int] | None = None) -> str:
    """An XMP packet with regions of the Metadata Working Group."""
    listed = "".join(
        f"<rdf:li><rdf:Description mwg-rs:Name={quoteattr(region.name)} mwg-rs:Type='Face'><mwg-rs:Area "
        f"stArea:x='{region.x}' stArea:y='{region.y}' stArea:w='{region.w}' stArea:h='{region.h}'/>"
        "</rdf:Description></rdf:li>"
        for region in regions
    )
    size = f"stDim:w='{size_wh[0]}' stDim:h='{size_wh[1]}'" if size_wh else ""
    return (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        "<rdf:Description rdf:about='' xmlns:mwg-rs='http://www.metadataworkinggroup.com/schemas/regions/' "
        "xmlns:stArea='http://ns.adobe.com/xmp/sType/Area#' "
        "xmlns:stDim='http://ns.adobe.com/xap/1.0/sType/Dimensions#'>"
        f"<mwg-rs:Regions rdf:parseType='Resource'><mwg-rs:AppliedToDimensions {size}/>"
        f"<mwg-rs:RegionList><rdf:Bag>{listed}</rdf:Bag>"
        "</mwg-rs:RegionList></mwg-rs:Regions></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
