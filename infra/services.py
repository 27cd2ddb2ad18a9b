"""Start, stop and describe a PostgreSQL and a Redis of our own on loopback, from Debian's packages.

For a machine that runs more than one server process or lets other machines' workers in, and for tests. Standard
library only. Safe to repeat: what runs is left, what is missing is made, nothing is ever overwritten.

    python infra/services.py up   --dir /var/lib/nightbeam/services   # prints the settings to use
    python infra/services.py show --dir /var/lib/nightbeam/services
    python infra/services.py down --dir /var/lib/nightbeam/services
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

DATABASES = ("prefect", "nightbeam_queue", "nightbeam_registry", "nightbeam_products", "nightbeam_elog")
USER = "nightbeam"
#: Each process of Prefect's API holds up to 15 connections, each worker and flow a few.
MOST_CONNECTIONS = 300
START_S = 60.0
STOP_S = 60.0


class ServicesError(Exception):
    """What is wrong, and how to mend it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"services: {what}\n  fix: {fix}")


@dataclass(frozen=True)
class Services:
    """Where the two keep things, and how they are reached."""

    place: Path
    postgresql_port: int
    redis_port: int

    @property
    def cluster(self) -> Path:
        """The files of PostgreSQL."""
        return self.place / "postgresql"

    @property
    def redis(self) -> Path:
        """The files of Redis."""
        return self.place / "redis"

    @property
    def password_file(self) -> Path:
        """One password for both; readable by its owner alone."""
        return self.place / "password"

    def settings(self) -> str:
        """Return the part of nightbeam.yaml that uses them (it holds the password)."""
        word = self.password_file.read_text().strip()
        base = f"{USER}:{word}@127.0.0.1:{self.postgresql_port}"
        lines = [
            "platform:",
            f"  database_url: postgresql+asyncpg://{base}/prefect",
            f"  redis_url: redis://:{word}@127.0.0.1:{self.redis_port}/0",
            "  server_workers: 2",
            "contimg:",
            *(
                f"  {name}_db: postgresql+psycopg://{base}/nightbeam_{name}"
                for name in ("queue", "registry", "products")
            ),
        ]
        return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when what was asked for is so; 69 where something is missing, 70 where it would not start."""
    told = _parse(arguments)
    try:
        services = _services(told)
        if told.what == "down":
            stop(services)
        elif told.what == "up":
            start(services)
        if told.what != "down":
            print(services.settings(), end="")
    except ServicesError as refusal:
        print(refusal, file=sys.stderr)
        return 69
    except subprocess.CalledProcessError as error:
        print((error.stderr or b"").decode(errors="replace")[-2000:], file=sys.stderr)
        print(f"services: {' '.join(map(str, error.cmd))} failed\n  fix: read the logs in {told.dir}", file=sys.stderr)
        return 70
    return 0


def start(services: Services) -> None:
    """Start what does not run, making it first where it is not there."""
    _make_place(services)
    if not _postgresql_runs(services):
        _refuse_strangers("PostgreSQL", services.postgresql_port, services)
        _start_postgresql(services)
    _make_databases(services)
    if not _redis_runs(services):
        _refuse_strangers("Redis", services.redis_port, services)
        _start_redis(services)


def stop(services: Services) -> None:
    """End both; what they hold stays. Connections that are open are ended, transactions undone."""
    _end(services.redis / "redis.pid", signal.SIGTERM, "redis-server")
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave by itself.
    _end(services.cluster / "postmaster.pid", signal.SIGINT, "postgres")


# -- PostgreSQL -----------------------------------------------------------------------------------------------------


def _postgresql_runs(services: Services) -> bool:
    """Say whether the server of our own files listens; whoever else has the port is not it."""
    ours = _lives(services.cluster / "postmaster.pid", f"-D {services.cluster}")
    return ours and _answers(services.postgresql_port)


def _start_postgresql(services: Services) -> None:
    binaries, cluster = _postgresql(), services.cluster
    if not (cluster / "PG_VERSION").exists():
        # Made under another name: one that was cut short would be taken for a cluster for ever after.
        part = cluster.with_name(f"{cluster.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        make = [binaries / "initdb", "-D", part, "-U", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        _run_as_owner([*make, f"--pwfile={services.password_file}"], services.place)
        part.rename(cluster)
    told = {
        "listen_addresses": "127.0.0.1",
        "port": services.postgresql_port,
        "unix_socket_directories": "",
        "max_connections": MOST_CONNECTIONS,
    }
    options = " ".join(f"-c {name}={value!s}" if value != "" else f"-c {name}=''" for name, value in told.items())
    log = services.place / "postgresql.log"
    _run_as_owner([binaries / "pg_ctl", "start", "-D", cluster, "-l", log, "-w", "-o", options], services.place)


def _make_databases(services: Services) -> None:
    binaries = _postgresql()
    reach = ["-h", "127.0.0.1", "-p", str(services.postgresql_port), "-U", USER]
    env = {**os.environ, "PGPASSWORD": services.password_file.read_text().strip()}
    ask = [binaries / "psql", *reach, "-d", "postgres", "-XAtc", "SELECT datname FROM pg_database"]
    there = subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout.split()
    for name in DATABASES:
        if name not in there:
            subprocess.run([binaries / "createdb", *reach, name], env=env, check=True, capture_output=True)


def _postgresql() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        raise ServicesError("no PostgreSQL on this machine", "apt-get install postgresql")
    return found[-1].parent


# -- Redis ----------------------------------------------------------------------------------------------------------


def _redis_runs(services: Services) -> bool:
    """Say whether the Redis whose files are ours listens."""
    return _lives(services.redis / "redis.pid", f":{services.redis_port}") and _answers(services.redis_port)


def _start_redis(services: Services) -> None:
    program = shutil.which("redis-server")
    if program is None:
        raise ServicesError("no Redis on this machine", "apt-get install redis-server")
    config = services.redis / "redis.conf"
    lines = [
        "bind 127.0.0.1",
        f"port {services.redis_port}",
        "daemonize yes",
        f"dir {services.redis}",
        f"pidfile {services.redis / 'redis.pid'}",
        f"logfile {services.redis / 'redis.log'}",
        f"requirepass {services.password_file.read_text().strip()}",
        # What Prefect's processes have to tell each other outlives a restart.
        "appendonly yes",
        # A queue of messages is never to be thinned out silently.
        "maxmemory-policy noeviction",
    ]
    services.redis.mkdir(exist_ok=True)
    _give_to_owner(services.redis)
    _write_private(config, "\n".join(lines) + "\n")
    _run_as_owner([Path(program), config], services.place)
    _await(lambda: _redis_runs(services), START_S, f"Redis on port {services.redis_port}", services.redis)


# -- both -----------------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "show", "down"))
    parser.add_argument("--dir", type=Path, required=True, help="where they keep everything")
    parser.add_argument("--postgresql-port", type=int, help="remembered; 54329 if free, else another")
    parser.add_argument("--redis-port", type=int, help="remembered; 63799 if free, else another")
    return parser.parse_args(arguments)


def _services(told: argparse.Namespace) -> Services:
    """Return where they are: the ports of the first start are remembered."""
    place = told.dir.resolve()
    memory = place / "ports"
    try:
        postgresql, redis = (int(word) for word in memory.read_text().split())
    except FileNotFoundError:
        if told.what != "up":
            raise ServicesError(f"no services in {place}", f"python infra/services.py up --dir {place}") from None
        postgresql, redis = told.postgresql_port or _free(54329), told.redis_port or _free(63799)
        place.mkdir(parents=True, exist_ok=True)
        _write_private(memory, f"{postgresql} {redis}\n")
    except ValueError:
        raise ServicesError(f"{memory} does not hold two ports", "write those of PostgreSQL and Redis there") from None
    for name, asked, is_at in (("postgresql", told.postgresql_port, postgresql), ("redis", told.redis_port, redis)):
        if asked not in (None, is_at):
            raise ServicesError(f"{name} is at port {is_at} here, not {asked}", f"stop it, and change {memory}")
    return Services(place, postgresql, redis)


def _make_place(services: Services) -> None:
    services.place.mkdir(parents=True, exist_ok=True)
    services.place.chmod(0o700)
    if not services.password_file.exists():
        _write_private(services.password_file, secrets.token_urlsafe(24) + "\n")
    _give_to_owner(services.place)
    _give_to_owner(services.password_file)


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    _give_to_owner(part)
    part.replace(path)


def _owner() -> pwd.struct_passwd | None:
    """Return whom they run as where we are root, which PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServicesError("PostgreSQL refuses to run as root", "run this as another user")


def _give_to_owner(path: Path) -> None:
    owner = _owner()
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _run_as_owner(command: Sequence[Path | str], place: Path) -> None:
    owner = _owner()
    become: dict[str, object] = {}
    if owner is not None:
        become = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with (place / "start.log").open("ab") as out:
        # Their output must not hold our own: who reads that would wait for servers to end.
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=place,
            start_new_session=True, check=False, **become,  # type: ignore[call-overload]
        )  # fmt: skip
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, [str(word) for word in command])


def _lives(pid_file: Path, mark: str) -> bool:
    """Say whether the process of a file lives, and is the one: its number may be another's by now."""
    try:
        line = Path(f"/proc/{int(pid_file.read_text().split()[0])}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        return False
    return mark in line.replace(b"\0", b" ").decode(errors="replace")


def _refuse_strangers(name: str, port: int, services: Services) -> None:
    if _answers(port):
        raise ServicesError(
            f"somebody else listens at port {port}, where {name} was to be",
            f"stop it, or write another port into {services.place / 'ports'}",
        )


def _end(pid_file: Path, number: signal.Signals, name: str) -> None:
    try:
        pid = int(pid_file.read_text().split()[0])
        # The number may be another's by now: a machine that lost its power left the file.
        if name not in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
            return
        os.kill(pid, number)
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        return
    _await(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), STOP_S, f"the end of {name}", pid_file)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _await(what: Callable[[], bool], within_s: float, name: str, see: Path) -> None:
    until = time.monotonic() + within_s
    while not what():
        if time.monotonic() > until:
            raise ServicesError(f"waited {within_s:.0f} s for {name} in vain", f"look into {see}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free(first: int) -> int:
    for port in range(first, first + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServicesError(f"no free port from {first} on", "name one")


if __name__ == "__main__":
    sys.exit(main())
