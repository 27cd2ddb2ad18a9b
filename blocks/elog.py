"""The electronic logbook: where it is, who asks, and where its mirror lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from nightbeam.core.settings import ElogSettings, Settings

if TYPE_CHECKING:
    from nightbeam.elog.remote import LogbookClient

#: What the block has as fields of its own; the rest of the settings is in ``options``.
_OWN = ("base_url", "auth", "kerberos_principal", "token_file", "database", "database_dir")


class ElogService(Block):
    """The electronic logbook of one site, and the database that mirrors it."""

    _block_type_name: ClassVar[str] = "Elog service"
    _block_type_slug: ClassVar[str] = "elog-service"
    _description: ClassVar[str] = "The electronic logbook of one site, how to be let in, and its mirror's database."

    url: str = Field(description="Address of the logbook, up to its `ws`.")
    auth: Literal["kerberos", "bearer", "none"] = Field(default="kerberos", description="How it is told who asks.")
    principal: str | None = Field(default=None, description="For auth kerberos: as whom the keytab logs in.")
    keytab: SecretStr | None = Field(
        default=None, description="For auth kerberos: path of the keytab; None: the worker has a ticket of its own."
    )
    service: str = Field(default="", description="The service's principal, such as HTTP@host; empty: of the host.")
    token_file: str | None = Field(default=None, description="For auth bearer; None: where the facility puts it.")
    database: SecretStr = Field(description="SQLAlchemy URL of the mirror; it may hold a password.")
    database_dir: str = Field(description="Where snapshots are published.")
    options: dict[str, Any] = Field(default_factory=dict, description="The rest of the section elog of the settings.")

    @classmethod
    def of(cls, settings: Settings, *, known: Self | None = None) -> Self:
        """Return the block that says what resolved settings say; how to be let in stays as an operator has set it."""
        told = settings.elog.model_dump(mode="json")
        own = {name: told.pop(name) for name in _OWN}
        block = cls(
            url=own["base_url"],
            auth=own["auth"],
            service=own["kerberos_principal"],
            token_file=own["token_file"],
            database=own["database"],
            database_dir=own["database_dir"],
            options=told,
        )
        if known is None:
            return block
        kept = {name: getattr(known, name) for name in ("auth", "principal", "keytab", "service", "token_file")}
        return block.model_copy(update=kept)

    def settings(self) -> ElogSettings:
        """Return the settings that the block stands for."""
        return ElogSettings.model_validate(
            {
                "base_url": self.url,
                "auth": self.auth,
                "kerberos_principal": self.service,
                "token_file": self.token_file,
                "database": self.database.get_secret_value(),
                "database_dir": self.database_dir,
                **self.options,
            }
        )

    @property
    def ticket_cache(self) -> Path:
        """Where the ticket that the keytab gets is kept, apart from everybody else's."""
        return Path(self.database_dir) / ".ticket"

    def kinit(self) -> list[str] | None:
        """Return the command that gets a ticket, or None where the worker has one of its own."""
        if self.auth != "kerberos" or self.keytab is None:
            return None
        principal = [self.principal] if self.principal else []
        return ["kinit", "-c", f"FILE:{self.ticket_cache}", "-k", "-t", self.keytab.get_secret_value(), *principal]

    def client(self, renew: Callable[[], object] | None = None) -> LogbookClient:
        """Return a client; it is to be closed. ``renew`` gets a fresh ticket or token."""
        from nightbeam.elog.credentials import auth_from
        from nightbeam.elog.remote import LogbookClient

        settings = self.settings()
        auth = auth_from(
            settings.auth,
            os.environ,
            token_file=settings.token_file,
            service=settings.kerberos_principal,
            renew=renew,
        )
        return LogbookClient(
            settings.base_url, auth=auth, read_s=settings.read_timeout, application=settings.application
        )
