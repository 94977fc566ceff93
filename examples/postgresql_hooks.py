"""The ledger in PostgreSQL: several replicas, on hosts of their own, share one store of record.

    [Hooks]
    file = "examples/postgresql_hooks.py"

Needs ``pip install "psycopg[binary,pool]"``. Where the database is, ``JUMPSERVER_POSTGRESQL`` says, a connection string
(postgresql://jumpserver@db.example/jumpserver); a password is better in ``PGPASSWORD`` or a passfile. The user must own
the schema, or the tables in it. Replicas that replay each other's sessions need one volume for the recordings, too.

A server says every two seconds that it lives. What one has left that was silent for a minute, another takes over; one
that could not say so itself, since the database was away, waits a minute before it believes that others are dead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from hooks import Database, HookError, Hooks, HooksSettings, Ledger, LedgerError, Rows, Unfinished

SILENT_SECONDS = 60.0  # until a server counts as dead
TIMEOUT_SECONDS = 1.0  # for a connection of the pool, a lock, a statement
CONNECTIONS = 4
_CHAIN_LOCK = 0x6A756D70  # the advisory lock of whoever writes
_SERVERS = """
CREATE TABLE IF NOT EXISTS servers (server TEXT PRIMARY KEY, since TIMESTAMPTZ NOT NULL, seen_at TIMESTAMPTZ NOT NULL)
"""
# Without long texts, which do not fit into PostgreSQL's indexes.
_INDEXES = """
CREATE INDEX IF NOT EXISTS unfinished ON sessions (server) WHERE logout_at IS NULL OR todo > 0;
CREATE INDEX IF NOT EXISTS sessions_open ON sessions (login_at, session_id) WHERE logout_at IS NULL;
CREATE INDEX IF NOT EXISTS sessions_in_time ON sessions (login_at, session_id);
CREATE INDEX IF NOT EXISTS sessions_of_user ON sessions USING hash ("user");
CREATE INDEX IF NOT EXISTS sessions_of_namespace ON sessions (namespace, login_at, session_id);
CREATE INDEX IF NOT EXISTS sessions_of_pod ON sessions (pod_name, login_at, session_id);
CREATE INDEX IF NOT EXISTS commands_in_time ON commands (time, number);
CREATE INDEX IF NOT EXISTS commands_of_user ON commands USING hash ("user")
"""
_BEAT = """
INSERT INTO servers VALUES (?, now(), now()) ON CONFLICT (server) DO UPDATE SET seen_at = now(),
since = CASE WHEN servers.seen_at < now() - make_interval(secs => ?) THEN now() ELSE servers.since END
"""
_LIVING = """
SELECT server, since < now() - make_interval(secs => ?) AS settled FROM servers
WHERE seen_at > now() - make_interval(secs => ?)
"""


class PostgresqlHooks(Hooks):
    """The hooks that ship, with the ledger in PostgreSQL."""

    @staticmethod
    def make_ledger(settings: HooksSettings) -> Ledger:
        """The ledger that ``JUMPSERVER_POSTGRESQL`` names."""
        place = os.environ.get("JUMPSERVER_POSTGRESQL")
        if not place:
            raise HookError("JUMPSERVER_POSTGRESQL must say where the ledger is")
        return PostgresqlLedger(place, settings.db)


class PostgresqlLedger(Ledger):
    """The contract of ``Ledger``, kept in PostgreSQL. ``path`` only says where this host's servers have sockets."""

    LIKE = "ILIKE"

    def __init__(self, place: str, path: Path) -> None:
        super().__init__(path)
        try:
            psycopg.conninfo.conninfo_to_dict(place)
        except psycopg.Error:
            raise HookError("JUMPSERVER_POSTGRESQL is not a connection string") from None  # which holds a password
        milliseconds = int(TIMEOUT_SECONDS * 1000)
        limits = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        self._pool = psycopg_pool.ConnectionPool(
            place,
            connection_class=psycopg.Connection[dict[str, Any]],
            check=psycopg_pool.ConnectionPool.check_connection,  # a database that was started again costs no login
            min_size=1,
            max_size=CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            kwargs={"row_factory": dict_row, "autocommit": True, "options": limits},
            open=False,
        )

    def open(self) -> None:
        """Connect, make the tables that are missing, and say that this server lives."""
        self._pool.open()
        try:
            with self.transaction() as db:
                there = "SELECT column_name FROM information_schema.columns WHERE table_name = 'sessions'"
                self.make_tables(db, {row["column_name"] for row in db.execute(there)}, f"{_SERVERS};{_INDEXES}")
            self.check()
        except LedgerError:
            self._pool.close()
            raise

    def close(self) -> None:
        """Say that this server lives no more, and disconnect."""
        with contextlib.suppress(LedgerError), self.reading() as db:
            db.execute("DELETE FROM servers WHERE server = ?", (self.server,))
        self._pool.close()

    def check(self) -> None:
        """Say that this server lives. Raises LedgerError when no session could be written now."""
        with self.transaction() as db:
            db.execute(_BEAT, (self.server, SILENT_SECONDS))

    def need_room(self) -> None:
        """The database looks after its disk."""

    def adopt(self) -> list[Unfinished]:
        """Take over what silent servers left unfinished."""
        return self.adopt_from(self._silent)

    def _silent(self, servers: set[str]) -> set[str]:
        with self.reading() as db:
            living = {row["server"]: row["settled"] for row in db.execute(_LIVING, (SILENT_SECONDS, SILENT_SECONDS))}
        return servers.difference(living) if living.get(self.server) else set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Database]:
        """A connection of the pool, for one thread at a time."""
        try:
            with self._pool.connection() as connection:
                yield _Connection(connection)
        except psycopg.Error as exc:
            raise LedgerError(f"PostgreSQL: {type(exc).__name__}: {exc}") from exc

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Database]:
        """All that the block writes, or nothing of it; one at a time, of all servers."""
        with self.reading() as db:
            db.execute("BEGIN")
            try:
                db.execute("SELECT pg_advisory_xact_lock(?)", (_CHAIN_LOCK,))
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(psycopg.Error):
                    db.execute("ROLLBACK")
                raise


class _Connection:
    """Takes question marks for psycopg's placeholders."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Rows:
        """Run a statement with a question mark for each value."""
        return self._connection.execute(query.replace("?", "%s").encode(), values)
