"""The Ray cluster through which a network hands on its batches."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from nightbeam.core.settings import StreamSettings


class RayCluster(Block):
    """A Ray cluster: the platform's own, or one of the site."""

    _block_type_name: ClassVar[str] = "Ray cluster"
    _block_type_slug: ClassVar[str] = "ray-cluster"
    _description: ClassVar[str] = "The Ray cluster through which a network hands on its batches."

    address: str | None = Field(
        default=None,
        description="host:port, or auto; None: as the settings say, and where they are silent the platform's own.",
    )
    namespace: str | None = Field(
        default=None, description="Ray's namespace of the queues; None: as the writer's configuration says."
    )
    token_file: str | None = Field(
        default=None, description="Path of the file with the word that the cluster asks for; None: as the settings say."
    )

    def stream(self, settings: StreamSettings) -> StreamSettings:
        """Return where the cluster is: what an operator wrote here, else what the settings say.

        Another cluster's address goes with its own token, never with that of the settings.
        """
        said = {name: value for name, value in self.model_dump().items() if name in _OURS and value is not None}
        if self.address is not None:
            said = {"token_file": None, **said}
        return StreamSettings.model_validate({**settings.model_dump(), **said})


_OURS = ("address", "namespace", "token_file")
