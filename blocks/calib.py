"""Where detector constants are asked for, and who asks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

if TYPE_CHECKING:
    from nightbeam.calib.remote import Auth, CalibService


class CalibrationService(Block):
    """The calibration web service of a facility, and how to be let in."""

    _block_type_name: ClassVar[str] = "Calibration service"
    _block_type_slug: ClassVar[str] = "calibration-service"
    _description: ClassVar[str] = "The web service that has detector constants, and how to be let in."

    url: str | None = Field(
        default=None,
        description="Its address, with or without calib_ws at the end; None: LCLS_CALIB_HTTP, or SLAC's for this auth.",
    )
    auth: Literal["none", "token", "kerberos"] = Field(default="none", description="How it is told who asks.")
    token: SecretStr | None = Field(default=None, description="For auth token; None: CALIB_JWT of the worker.")
    principal: str = Field(
        default="HTTP@pswww.slac.stanford.edu", description="For auth kerberos: for whom the ticket is."
    )
    timeout_s: float = Field(default=30.0, gt=0, description="How long it may be silent.")
    deadline_s: float = Field(default=180.0, gt=0, description="How long a question is asked again.")

    def at(self, url: str | None) -> Self:
        """Return the same block for another address, or this one where none is given."""
        return self if url is None else self.model_copy(update={"url": url})

    def client(self) -> CalibService:
        """Return a client; it is to be closed.

        Raises
        ------
        ConfigError
            If there is no token, or Kerberos cannot be loaded.
        """
        from nightbeam.calib.remote import CalibService

        return CalibService.from_environment(
            os.environ, url=self.url, auth=self._auth(), timeout_s=self.timeout_s, deadline_s=self.deadline_s
        )

    def _auth(self) -> Auth:
        from nightbeam.calib.remote import Anonymous, BearerToken, Kerberos

        if self.auth == "kerberos":
            return Kerberos(self.principal)
        if self.auth == "none":
            return Anonymous()
        given = self.token.get_secret_value() if self.token else os.environ.get("CALIB_JWT", "")
        return BearerToken(given)
