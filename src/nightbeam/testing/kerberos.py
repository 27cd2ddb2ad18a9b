"""A Kerberos realm on this machine: its ticket server, users, services, tickets, and the side that checks them.

Everything lies in one directory and on loopback; no file of the system is touched, and any user can run it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nightbeam.core.children import die_with_parent, log_tail, stop_child
from nightbeam.core.errors import AuthError, ConfigError, MissingError, ToolError

__all__ = ["Accepted", "Acceptor", "Realm", "missing_programs"]

_PROGRAMS: Final = ("kdb5_util", "kadmin.local", "krb5kdc", "kinit")
#: Not always in an ordinary user's PATH.
_ELSEWHERE: Final = "/usr/sbin:/sbin"
_START_S: Final = 10.0
_PROGRAM_S: Final = 30.0

_KRB5_CONF: Final = """\
[libdefaults]
  default_realm = {realm}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  udp_preference_limit = 1
  default_ccache_name = FILE:{directory}/cc_default
  ticket_lifetime = 10h
  renew_lifetime = 7d
[realms]
  {realm} = {{
    kdc = 127.0.0.1:{port}
  }}
[domain_realm]
  localhost = {realm}
"""
_KDC_CONF: Final = """\
[kdcdefaults]
  kdc_listen = 127.0.0.1:{port}
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  {realm} = {{
    database_name = {directory}/principal
    key_stash_file = {directory}/stash
    acl_file = {directory}/kadm5.acl
    max_life = 10h
    max_renewable_life = 7d
    supported_enctypes = aes256-cts:normal aes128-cts:normal
    master_key_type = aes256-cts
  }}
[logging]
  kdc = FILE:{directory}/kdc.log
  default = FILE:{directory}/krb5lib.log
"""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_ELSEWHERE)


def missing_programs() -> list[str]:
    """Return which programs of a realm this machine lacks; Debian has them in krb5-kdc, -admin-server and -user."""
    return [name for name in _PROGRAMS if _program(name) is None]


class Realm:
    """A realm with a ticket server of its own, as a context manager.

    Parameters
    ----------
    directory
        Made if need be, for its owner alone; holds everything, and may be kept or removed afterwards.
    name
        Of the realm.

    Raises
    ------
    MissingError
        On starting, if a program is not installed.
    ToolError
        On starting, if one fails.

    Examples
    --------
    >>> with Realm(tmp_path) as realm:  # doctest: +SKIP
    ...     accept = Acceptor(realm.add_principal("HTTP/localhost"))
    ...     realm.kinit("alice", keytab=realm.add_principal("alice"), cache=tmp_path / "cc")
    ...     subprocess.run(command, env={**os.environ, **realm.environ(tmp_path / "cc")})
    """

    def __init__(self, directory: Path, name: str = "NIGHTBEAM.TEST") -> None:
        self.directory, self.name = Path(directory).absolute(), name
        self._port = 0
        self._kdc: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Make the realm where there is none yet, and start its ticket server.

        To be called by a thread that lives as long as the server shall: it dies with it.
        """
        missing = missing_programs()
        if missing:
            raise MissingError(
                f"no Kerberos realm without {', '.join(missing)}",
                fix="apt-get install krb5-kdc krb5-admin-server krb5-user",
            )
        new = not (self.directory / "principal").exists()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = self._port or _free_port()
        values = {"realm": self.name, "directory": self.directory, "port": self._port}
        (self.directory / "krb5.conf").write_text(_KRB5_CONF.format(**values))
        (self.directory / "kdc.conf").write_text(_KDC_CONF.format(**values))
        (self.directory / "kadm5.acl").touch()
        if new:
            self._run("kdb5_util", "create", "-s", "-r", self.name, "-P", "of-no-use-to-anybody")
        self._serve()

    def _serve(self) -> None:
        with (self.directory / "krb5kdc.out").open("ab") as out:
            self._kdc = subprocess.Popen(
                [_program("krb5kdc") or "krb5kdc", "-n", "-r", self.name, "-P", str(self.directory / "kdc.pid")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environ()},
                preexec_fn=die_with_parent(),
            )
        until = time.monotonic() + _START_S
        while not _listens(self._port):
            if self._kdc.poll() is not None or time.monotonic() > until:
                said = log_tail(self.directory / "krb5kdc.out") or log_tail(self.directory / "kdc.log")
                self.stop()
                raise ToolError(f"the ticket server did not start; it said: {said}", fix=f"see {self.directory}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the ticket server; `start` starts it again, with the same principals at the same port."""
        if self._kdc is not None:
            stop_child(self._kdc)
            self._kdc = None

    def environ(self, cache: Path | None = None) -> dict[str, str]:
        """Return the variables by which a program finds the realm, and the tickets of a cache."""
        found = {
            "KRB5_CONFIG": str(self.directory / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            "KRB5RCACHENAME": f"file2:{self.directory}/rcache",
        }
        return found if cache is None else {**found, "KRB5CCNAME": f"FILE:{cache}"}

    def add_principal(self, name: str, password: str | None = None) -> Path:
        """Add a user (``alice``) or a service (``HTTP/localhost``) and return the file of its key.

        Parameters
        ----------
        password
            For `kinit`; without one only the file opens the door.
        """
        how = ["-randkey"] if password is None else ["-pw", password]
        self._admin("addprinc", *how, name)
        return self.write_keytab(name, self.directory / f"{name.replace('/', '_')}.keytab")

    def write_keytab(self, name: str, path: Path, *, new_key: bool = False) -> Path:
        """Write the key of a principal into a file, mode 0600; a new key makes all older files useless."""
        self._admin("ktadd", *([] if new_key else ["-norandkey"]), "-k", str(path), name)
        path.chmod(0o600)
        return path

    def kinit(
        self, name: str, *, cache: Path, keytab: Path | None = None, password: str = "", lifetime: str = "1h"
    ) -> None:
        """Get a ticket by a file or a password and put it into a cache.

        Parameters
        ----------
        lifetime
            E.g. ``3s``.

        Raises
        ------
        AuthError
            If the ticket server refuses or cannot be asked; in kinit's own words.
        """
        how = ["-l", lifetime, *([] if keytab is None else ["-k", "-t", str(keytab)]), name]
        done = self._start("kinit", how, self.environ(cache), f"{password}\n")
        if done.returncode:
            raise AuthError(f"no ticket for {name}: {done.stdout.strip()}", fix="check the name and its key")

    def _admin(self, *words: str) -> None:
        # kadmin.local ends with 0 whatever happened when its question comes by -q; as arguments it tells.
        self._run("kadmin.local", "-r", self.name, *words)

    def _run(self, program: str, *arguments: str) -> None:
        done = self._start(program, list(arguments), self.environ(), "")
        if done.returncode:
            raise ToolError(f"{program} failed: {done.stdout.strip()}", fix=f"see {self.directory}")

    def _start(
        self, program: str, arguments: list[str], environ: Mapping[str, str], text: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_program(program) or program, *arguments],
            env={**os.environ, **environ, "LC_ALL": "C"},
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PROGRAM_S,
            check=False,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """Who was let in.

    Attributes
    ----------
    user
        E.g. ``alice@NIGHTBEAM.TEST``.
    proof
        The header ``WWW-Authenticate`` of the answer, by which the service proves who it is.
    """

    user: str
    proof: str


class Acceptor:
    """The side of a service: looks at the header ``Authorization`` and says who asks. May be shared by threads.

    As a function it is the ``gate`` of `nightbeam.testing.calib_service.FakeCalibService`.

    Parameters
    ----------
    keytab
        The service's key; read anew for every request. Tickets for any service that it has a key of are taken.

    Raises
    ------
    ConfigError
        If Kerberos cannot be loaded.
    """

    def __init__(self, keytab: Path) -> None:
        try:
            # Not at the top: it needs the system's Kerberos libraries, which only those who use them have.
            import gssapi
            from gssapi.raw.misc import GSSError
        except (ImportError, OSError) as error:
            raise ConfigError(f"Kerberos cannot be loaded: {error}", fix="pip install 'nightbeam[facility]'") from error
        self._errors: tuple[type[Exception], ...] = (GSSError, Base64Error)
        self._context = _telling_at_once(gssapi.SecurityContext)
        # A replay cache of its own: that of the system is shared by all programs of the user. No name: that of a host
        # would be looked up in the DNS.
        store: dict[str | bytes, str | bytes] = {"keytab": str(keytab), "rcache": f"file2:{keytab}.rcache"}
        self._credentials: Any = gssapi.Credentials(usage="accept", store=store)

    def check(self, authorization: str | None) -> Accepted | None:
        """Return who asks; None where nobody says so, or with a token that is wrong, expired or seen before."""
        kind, _, text = (authorization or "").partition(" ")
        if kind.lower() != "negotiate" or not text.strip():
            return None
        try:
            context = self._context(creds=self._credentials, usage="accept")
            proof = context.step(b64decode(text)) or b""
            user = str(context.initiator_name)
        except self._errors:
            return None
        return Accepted(user, f"Negotiate {b64encode(proof).decode()}")

    def __call__(self, authorization: str | None) -> dict[str, str] | None:
        """Return what is added to the headers of an answer; None where nobody is let in."""
        accepted = self.check(authorization)
        return None if accepted is None else {"WWW-Authenticate": accepted.proof, "X-User": accepted.user}


def _telling_at_once(context: Any) -> Any:
    """Return a kind of context that tells of a wrong token when it gets it, not when it is used next."""
    kind: Any = type(context)("Context", (context,), {})
    kind.__DEFER_STEP_ERRORS__ = False  # only now: the metaclass makes every class begin with True
    return kind


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
