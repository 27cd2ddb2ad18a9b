"""Where continuum imaging finds its files and databases at one site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from nightbeam.core.settings import ContimgSettings, Settings

if TYPE_CHECKING:
    from nightbeam.contimg import Site


#: Settings that are fields of the block; all others are its options.
_OWN = frozenset({"input_dir", "output_dir", "scratch_dir", "queue_db", "registry_db", "products_db"})


class ContimgSite(Block):
    """Directories, databases and options of continuum imaging at one site."""

    _block_type_name: ClassVar[str] = "Continuum imaging site"
    _block_type_slug: ClassVar[str] = "contimg-site"
    _description: ClassVar[str] = "Directories, databases and options of continuum imaging at one site."

    state_dir: str = Field(description="Databases, locks and logs.")
    input_dir: str = Field(description="Where subbands arrive.")
    output_dir: str = Field(description="Measurement Sets, tables and images.")
    scratch_dir: str = Field(description="Work in progress; may be lost at any time.")
    queue_db: SecretStr = Field(description="SQLAlchemy URL of the queue; it may hold a password.")
    registry_db: SecretStr = Field(description="SQLAlchemy URL of the calibration registry.")
    products_db: SecretStr = Field(description="SQLAlchemy URL of the products.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="All other settings of continuum imaging, by the names that they have there.",
    )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the block that says what resolved settings say."""
        told = settings.contimg.model_dump(mode="json")
        shared = told.pop("state_dir")
        options = {name: told.pop(name) for name in ContimgSettings.model_fields if name in told and name not in _OWN}
        return cls(state_dir=shared or str(settings.state_dir), options=options, **told)

    def settings(self) -> Settings:
        """Return the settings that the block stands for; every path in them is absolute."""
        contimg = ContimgSettings.model_validate(
            {
                "input_dir": self.input_dir,
                "output_dir": self.output_dir,
                "scratch_dir": self.scratch_dir,
                "queue_db": self.queue_db.get_secret_value(),
                "registry_db": self.registry_db.get_secret_value(),
                "products_db": self.products_db.get_secret_value(),
                **self.options,
            }
        )
        return Settings(state_dir=Path(self.state_dir), contimg=contimg).resolved()

    def site(self) -> Site:
        """Return the library's site; the work is done there."""
        from nightbeam.contimg import Site

        return Site.from_settings(self.settings())
