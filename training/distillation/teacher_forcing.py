"""Inner maps of a network as it runs, and a teacher's maps in their place.

Both are forward hooks on the network's modules, which need no code for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class InnerMaps:
    """Records the outputs of some of a network's modules.

        inner = InnerMaps([*network.blocks])
        with inner.recording() as maps:
            output = network(images)
        with inner.recording(teacher_maps) as maps:  # teacher forcing
            output = network(images)

    With teacher forcing (Li et al., arXiv:1911.13053) whatever follows a module takes the teacher's map in
    place of the module's own, which is recorded all the same: modules learn apart, each from the input that
    it would have if those before it were perfect already. A deep copy of the network, together with this,
    records maps of its own. Outside of `recording` the hooks do nothing.

    Args:
        modules: Each gives a map or a tuple of maps, once in a pass. Maps are recorded in the order in which
            the network computes them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._maps: list[Tensor] | None = None
        self._teacher_maps: Sequence[Tensor] = ()
        for module in modules:
            module.register_forward_hook(self._record)

    def recording(self, teacher_maps: Sequence[Tensor] = ()) -> InnerMaps:
        """Record within a `with` block.

        Args:
            teacher_maps: What replaces the maps, all of them in their order; empty: nothing does.
        """
        self._teacher_maps = teacher_maps
        return self

    # Not a generator's context: torch.compile follows methods in all versions of torch.
    def __enter__(self) -> list[Tensor]:
        self._maps = []
        return self._maps

    def __exit__(self, *_error: object) -> None:
        self._maps, self._teacher_maps = None, ()

    # A bound method, because deep copies of hooks must record into the copy, and closures are not copied.
    def _record(
        self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if self._maps is None:
            return None
        first = len(self._maps)
        self._maps += output if isinstance(output, tuple) else (output,)
        if not self._teacher_maps:
            return None
        forced = tuple(self._teacher_maps[first : len(self._maps)])
        return forced if isinstance(output, tuple) else forced[0]
