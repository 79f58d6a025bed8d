"""The available liveness packs."""

from __future__ import annotations

from indexer.errors import NotFound
from indexer.models.liveness_packs import BUILT_IN_LIVENESS, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.models.packs import describe_file


class LivenessCatalogue:
    """Finds liveness packs. It reads the disk each time, so that new packs appear at once. Thread-safe."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def names(self) -> list[str]:
        return [pack.name for pack in BUILT_IN_LIVENESS]

    def find(self, name: str) -> LivenessPack:
        """Returns the pack. Raises NotFound."""
        found = next((pack for pack in BUILT_IN_LIVENESS if pack.name == name), None)
        if found is None:
            expected = ", ".join(self.names())
            raise NotFound(f"there is no liveness pack {name!r}; expected one of {expected}", code="model_not_found")
        return found

    def is_installed(self, pack: LivenessPack) -> bool:
        """Whether all files of the pack are present."""
        return self._files.are_present(pack)

    def find_installed(self, name: str) -> LivenessPack:
        """Returns the pack. Raises NotFound, or ModelUnavailable if a file is missing."""
        pack = self.find(name)
        self._files.check_present(pack, "liveness pack")
        return pack

    def describe(self, name: str) -> dict[str, object]:
        """Returns the pack as JSON."""
        pack = self.find(name)
        return {
            "name": pack.name,
            "kind": "liveness",
            "summary": pack.summary,
            "threshold": pack.threshold,
            "measured_on": pack.measured_on,
            "files": [describe_file(file) for file in pack.files],
            "installed": self.is_installed(pack),
        }
