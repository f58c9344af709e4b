"""Databases, logins, users and grants; backups, which are copies of a database."""

from typing import TYPE_CHECKING, Final

from lab.sqlserver.catalog import Table
from lab.sqlserver.errors import SqlError, Unknown
from lab.sqlserver.values import text_literal
from lab.sqlserver.words import Script, by_commas, joined

if TYPE_CHECKING:
    from lab.sqlserver.engine import Session

_MINUTES_MAX: Final = 2**31 - 1
_UNITS: Final = {"DAYS": 1440, "HOURS": 60, "MINUTES": 1}


class Admin:
    """What a session does to others than tables."""

    def __init__(self, session: "Session") -> None:
        self._session, self._server = session, session.server

    def create(self, script: Script) -> None:
        if script.has("DATABASE"):
            self._server.create(script.name())
        elif script.has("LOGIN"):
            name = script.name()
            script.need("WITH", "PASSWORD", "=")
            if name.lower() in self._server.logins:
                raise SqlError(15025, f"The server principal '{name}' already exists.")
            self._server.logins[name.lower()] = script.next().value
        elif script.has("USER"):
            name = script.name()
            login = script.name() if script.has("FOR", "LOGIN") or script.has("FROM", "LOGIN") else name
            self._session.ask(f"INSERT INTO tds.users VALUES ({text_literal(name)}, {text_literal(login.lower())})")
        else:
            raise Unknown(f"CREATE {script.word.text}")

    def drop(self, script: Script) -> None:
        if script.has("DATABASE"):
            optional = script.has("IF", "EXISTS")
            name = script.name()
            if not optional or self._server.settings(name) is not None:
                self._server.drop(name)
        elif script.has("LOGIN"):
            self._server.logins.pop(script.name().lower(), None)
        elif script.has("USER"):
            name = text_literal(script.name())
            self._session.ask(
                f"DELETE FROM tds.users WHERE name = {name}; DELETE FROM tds.grants WHERE grantee = {name}"
            )
        elif script.has("SCHEMA"):
            self._session.ask(f'DROP SCHEMA "{script.name().lower()}"')
        else:
            raise Unknown(f"DROP {script.word.text}")

    def alter(self, script: Script) -> None:
        if script.has("ROLE"):
            role = script.name().lower()
            script.need("ADD", "MEMBER")
            self._join(role, script.name())
            return
        if not script.has("DATABASE"):
            raise Unknown(f"ALTER {script.word.text}")
        name = self._session.database if script.has("CURRENT") else script.name()
        settings = self._server.settings(name)
        if settings is None:
            raise SqlError(5011, f"User does not have permission to alter database '{name}', the database does not "
                                 "exist, or the database is not in a state that allows access checks.")  # fmt: skip
        script.need("SET")
        if script.has("CHANGE_TRACKING"):
            self._track(name, settings["tracking"] == "ON", script)
        elif script.has("ALLOW_SNAPSHOT_ISOLATION"):
            self._server.set(name, snapshot=script.next().upper)
        elif script.has("READ_COMMITTED_SNAPSHOT"):
            self._server.set(name, versioned=script.next().upper)
        elif script.has("SINGLE_USER"):
            self._server.single[name.lower()] = self._session.number
            if script.has("WITH", "ROLLBACK", "IMMEDIATE"):
                self._server.end_sessions(name, but=self._session)
        elif script.has("MULTI_USER"):
            self._server.single.pop(name.lower(), None)
        elif script.has("COMPATIBILITY_LEVEL", "="):
            self._server.set(name, level=script.next().text)
        elif script.word.upper in {"RECOVERY", "AUTO_CLOSE"}:
            pass
        else:
            raise Unknown(f"ALTER DATABASE … SET {script.word.text}")

    def _track(self, database: str, on: bool, script: Script) -> None:
        """SET CHANGE_TRACKING: ON, OFF, or only its options. Errors come with 5069, as the client sees it."""
        if database.lower() in {"master", "tempdb", "model", "msdb"}:
            raise SqlError(5090, f"Database '{database}' is a system database. Change tracking settings cannot be "
                                 "changed for system databases.")  # fmt: skip
        if script.has("=", "OFF"):
            if not on:
                raise SqlError(5089, f"Change tracking is disabled for database '{database}'. Change tracking must be "
                                     "enabled on a database to modify change tracking settings.")  # fmt: skip
            if self._server.ask(database, "SELECT 1 FROM tds.tracked"):
                raise SqlError(22115, "Change tracking is enabled for one or more tables in database "
                                      f"'{database}'. Disable change tracking on each table before disabling it "
                                      "for the database.")  # fmt: skip
            self._server.set(database, tracking="OFF")
            return
        if script.has("=", "ON"):
            if on:
                raise SqlError(5088, f"Change tracking is already enabled for database '{database}'.")
        elif not on:
            raise SqlError(5089, f"Change tracking is disabled for database '{database}'. Change tracking must be "
                                 "enabled on a database to modify change tracking settings.")  # fmt: skip
        values: dict[str, object] = {"tracking": "ON"}
        if script.word.text == "(":
            values |= self._tracking_options(script)
        self._server.set(database, **values)

    def _tracking_options(self, script: Script) -> dict[str, object]:
        values: dict[str, object] = {}
        for part in by_commas(script.inside()):
            words = [word.upper for word in part]
            if words[0] == "CHANGE_RETENTION" and len(words) == 4:
                if words[3] not in _UNITS:
                    raise SqlError(155, f"'{part[3].text}' is not a recognized CHANGE_RETENTION option.", state=2)
                if not 1 <= int(words[2]) * _UNITS[words[3]] <= _MINUTES_MAX:
                    raise SqlError(5092, "The value for change tracking option 'CHANGE_RETENTION' is not valid.")
                option, value = "retention", f"{words[2]} {words[3]}"
            elif words[0] == "AUTO_CLEANUP" and words[2:] in (["ON"], ["OFF"]):
                option, value = "cleanup", words[2]
            else:
                raise SqlError(102, f"Incorrect syntax near '{joined(part, script.text)}'.", severity=15)
            if option in values:
                raise SqlError(5091, f"Change tracking option '{part[0].text}' was specified more than once.")
            values[option] = value
        return values

    # Permissions ------------------------------------------------------------------------------------------------------

    def grant(self, script: Script, *, given: bool) -> None:
        """GRANT or REVOKE, on an object, a schema or the database; columns are left aside."""
        start = script.at
        while script.word.upper not in {"ON", "TO", "FROM"}:
            if script.next().kind == "end":
                script.fail()
        names = [" ".join(w.upper for w in part) for part in by_commas(script.words[start : script.at])]
        thing = self._securable(script) if script.has("ON") else "0"
        if not (script.has("TO") or script.has("FROM")):
            script.fail()
        grantee = text_literal(script.name())
        for name in names:
            values = f"{grantee}, {text_literal(name.partition(' (')[0])}, {thing}"
            if given:
                self._session.ask(f"INSERT INTO tds.grants VALUES ({values}) ON CONFLICT DO NOTHING")
            else:
                self._session.ask(f"DELETE FROM tds.grants WHERE (grantee, permission, object) = ({values})")

    def _securable(self, script: Script) -> str:
        if script.has("SCHEMA", "::"):
            name = script.name()
            return f"(SELECT oid FROM pg_namespace WHERE nspname = {text_literal(name.lower())})"
        if script.has("DATABASE", "::"):
            script.name()
            return "0"
        script.has("OBJECT", "::")
        missing = "Cannot find the object '{}', because it does not exist or you do not have permission."
        table: Table = self._session.tables.named(script, 15151, missing)
        if script.word.text == "(":
            script.inside()
        return str(table.oid)

    def _join(self, role: str, user: str) -> None:
        if role == "db_owner":
            self._session.ask(f"UPDATE tds.users SET owner = true WHERE name = {text_literal(user)}")
            return
        granted = {
            "db_datareader": ["SELECT"],
            "db_datawriter": ["INSERT", "UPDATE", "DELETE"],
            "db_ddladmin": ["ALTER"],
        }
        if role not in granted:
            raise Unknown(f"the role {role}")
        for permission in granted[role]:
            self._session.ask(f"INSERT INTO tds.grants VALUES ({text_literal(user)}, '{permission}', 0)"
                              " ON CONFLICT DO NOTHING")  # fmt: skip

    # Backups ----------------------------------------------------------------------------------------------------------

    def backup(self, script: Script) -> None:
        script.need("DATABASE")
        name = script.name()
        script.need("TO", "DISK", "=")
        copy = _copy(script.next().value)
        if self._server.settings(copy) is not None:
            self._server.drop(copy)
        if name.lower() == self._session.database.lower():
            raise Unknown("a backup from inside of the database: USE master first")
        self._server.end_sessions(name, but=self._session)  # PostgreSQL copies a database that nobody uses
        self._server.create(copy, like=name, **(self._server.settings(name) or {}) | {"backup": "yes"})

    def restore(self, script: Script) -> None:
        """The database as it was, with a new recovery fork; what it had tracked since is forgotten."""
        script.need("DATABASE")
        name = script.name()
        script.need("FROM", "DISK", "=")
        copy = _copy(script.next().value)
        settings = self._server.settings(copy)
        if settings is None:
            raise SqlError(3201, "Cannot open backup device. Operating system error 2.")
        if self._server.settings(name) is not None:
            self._server.end_sessions(name, but=self._session)
            self._server.drop(name)
        fork = self._server.root("SELECT gen_random_uuid()")[0][0]
        self._server.create(name, like=copy, **settings | {"name": name, "fork": fork, "backup": "no"})


def _copy(disk: str) -> str:
    return f"backup {disk}".lower()
