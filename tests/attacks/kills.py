"""Everything that is killed."""

from __future__ import annotations

from functools import partial

from attacks import batch_commands, gallery_calls, gallery_commands
from attacks.cases import Attack
from attacks.operations import kill_often, leave_nothing

_OPERATIONS = {**gallery_commands.OPERATIONS, **batch_commands.OPERATIONS}
ATTACKS = [
    *gallery_calls.ATTACKS,
    *(Attack("kills", name, partial(kill_often, operation)) for name, operation in _OPERATIONS.items()),
    Attack("kills", "left-over files", partial(leave_nothing, _OPERATIONS)),
]
