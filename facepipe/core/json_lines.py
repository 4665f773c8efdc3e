"""Records as lines of JSON that every encoding of Unicode can hold."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, is_dataclass
from typing import Any

from facepipe.core.plain_text import text_of, visible_json

_SURROGATE = re.compile("[\ud800-\udfff]")


def record_to_json(record: Any) -> str:
    """Return a dataclass or mapping as one line of JSON for any encoding of Unicode; paths become text."""
    if is_dataclass(record) and not isinstance(record, type):
        record = asdict(record)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=text_of)
    return visible_json(_SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", line))
