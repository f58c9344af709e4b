"""Connections to SQL Server: the address, the two drivers behind one small port, a session and its errors.

The port's statements hold PARAMETER where a parameter stands, which each driver has another sign for. A result is
iterated, never fetched in large portions: mssql-python's fetchmany slows down with its size.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from upwell.errors import ConfigError, OperatorError, UpwellError
from upwell.sources.sqlserver_errors import LOGIN_FAILED, meaning, number_of, one_line, unreachable
from upwell.sources.sqlserver_types import Parameter

if TYPE_CHECKING:
    from cryptography import x509

Driver = Literal["mssql-python", "python-tds"]

PARAMETER: Final = "\x01"  # in statements: no name or text of ours has this character
DEFAULT_PORT: Final = 1433
LOGIN_TIMEOUT_S: Final = 15
READ_TIMEOUT_S: Final = 120  # for the first row of a statement; long, since a backlog is sorted first
LOCK_TIMEOUT_MS: Final = 10_000
PROGRAM: Final = "upwell"

_OPTIONS: Final = frozenset(
    {
        "instance",
        "encrypt",
        "trust_server_certificate",
        "ca",
        "host_name_in_certificate",
        "authentication",
        "failover_partner",
        "multi_subnet_failover",
        "read_timeout",
    }
)
_NEEDED: Final = "mssql-python knows it only"


@dataclass(frozen=True, slots=True)
class Address:
    """What `source.url` says: mssql://USER:PASSWORD@HOST:1433/DATABASE?OPTIONS. docs/sqlserver.md lists the options."""

    host: str
    port: int | None  # None: 1433, or what the server's browser says of the instance
    database: str
    user: str = ""
    password: str = ""
    instance: str = ""
    encrypt: bool = True
    trust: bool = False  # any certificate, which must be said
    ca: str = ""  # a file with the certificate, or its authority's
    host_in_certificate: str = ""
    authentication: str = ""  # empty: user and password; kerberos; else one of mssql-python's own words
    partner: str = ""  # host[:port] to try next
    multi_subnet: bool = False
    read_timeout_s: int = READ_TIMEOUT_S

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ConfigError."""
        try:
            parts = urlsplit(url)
            host, port, database = parts.hostname, parts.port, unquote(parts.path.strip("/"))
        except ValueError:  # whose words quote what it takes for the port
            raise _wrong("what is special in its password must be encoded, as in %40 for @") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise _wrong(f"it has no option {unknown[0]}")
        if not host or not database:
            raise _wrong(f"it names no {'database' if host else 'host'}")
        timeout = options.get("read_timeout", str(READ_TIMEOUT_S))
        if not timeout.isdecimal():
            raise _wrong("read_timeout takes seconds")
        return cls(
            host=host,
            port=port,
            database=database,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            instance=options.get("instance", ""),
            encrypt=_flag(options, "encrypt", default=True),
            trust=_flag(options, "trust_server_certificate", default=False),
            ca=options.get("ca", ""),
            host_in_certificate=options.get("host_name_in_certificate", ""),
            authentication=options.get("authentication", ""),
            partner=options.get("failover_partner", ""),
            multi_subnet=_flag(options, "multi_subnet_failover", default=False),
            read_timeout_s=int(timeout),
        )

    @property
    def hosts(self) -> list[tuple[str, int | None]]:
        """Where to try, in this order."""
        if not self.partner:
            return [(self.host, self.port)]
        host, _, port = self.partner.partition(":")
        return [(self.host, self.port), (host, int(port) if port.isdigit() else self.port)]

    def __str__(self) -> str:
        """For messages: without secrets."""
        instance = f"\\{self.instance}" if self.instance else ""
        return f"{self.host}{instance}:{self.port or DEFAULT_PORT}/{self.database}"


def _wrong(what: str) -> ConfigError:
    return ConfigError(
        f"The source's URL is not right: {what}.",
        code="UW-MS-001",
        remedy=f"mssql://USER:PASSWORD@HOST:1433/DATABASE, with options {', '.join(sorted(_OPTIONS))}.",
    )


def _flag(options: dict[str, str], name: str, *, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if value.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise _wrong(f"{name} is yes or no")
    return value.lower() in ("yes", "true", "1")


class DriverPort(Protocol):
    """What a driver does for a session. All raise the driver's own errors."""

    errors: tuple[type[BaseException], ...]  # that the methods raise for what the server or the network did

    def connect(self, address: Address, host: str, port: int | None) -> Any:
        """A connection without implicit transactions."""

    def execute(self, connection: Any, sql: str, parameters: Sequence[Parameter]) -> Any:
        """A cursor: an iterator over the rows, with `rowcount`."""

    def stop(self, cursor: Any) -> None:
        """Give up what is left of a result: the connection can be used again."""

    def number(self, error: BaseException) -> tuple[int, str]:
        """An error's number, 0 where it is not the server's or is not known, and its text."""


class MssqlPython:
    """Microsoft's driver. It speaks TLS, Kerberos, Entra ID; the default."""

    def __init__(self) -> None:
        import mssql_python

        mssql_python.pooling(enabled=False)  # a pool would hide that a connection is another one than before
        self._module = mssql_python
        self.errors: tuple[type[BaseException], ...] = (mssql_python.Error, RuntimeError, OSError)

    def connect(self, address: Address, host: str, port: int | None) -> Any:
        """See DriverPort."""
        server = (
            f"{host}\\{address.instance}" if address.instance and port is None else f"{host},{port or DEFAULT_PORT}"
        )
        words = {
            "Server": server,
            "Database": address.database,
            "Encrypt": "yes" if address.encrypt else "no",
            "TrustServerCertificate": "yes" if address.trust else "no",
            "HostnameInCertificate": address.host_in_certificate,
            "MultiSubnetFailover": "yes" if address.multi_subnet else "",
            # It would connect anew by itself, after a failover or a restore, and we must know when that happens.
            "ConnectRetryCount": "0",
        }
        if address.authentication == "kerberos":
            words["Trusted_Connection"] = "yes"
        else:
            words |= {"Authentication": address.authentication, "UID": address.user, "PWD": address.password}
        text = ";".join(f"{word}={_braced(value)}" for word, value in words.items() if value)
        with trusting(address.ca if address.encrypt else ""):
            connection = self._module.connect(text, autocommit=True, timeout=LOGIN_TIMEOUT_S)
        connection.timeout = address.read_timeout_s
        return connection

    def execute(self, connection: Any, sql: str, parameters: Sequence[Parameter]) -> Any:
        """See DriverPort. Types are declared: those that it infers from the values make a plan for each length."""
        cursor = connection.cursor()
        if not parameters:
            return cursor.execute(sql)
        cursor.setinputsizes([self._declared(value) for value in parameters])
        return cursor.execute(sql.replace(PARAMETER, "?"), list(parameters))

    def _declared(self, value: Parameter) -> tuple[int, int, int]:
        if isinstance(value, int):
            return (self._module.SQL_BIGINT, 0, 0)
        if isinstance(value, bytes):
            return (self._module.SQL_VARBINARY, 8000, 0)
        return (self._module.SQL_WVARCHAR, 4000, 0)

    def stop(self, cursor: Any) -> None:
        """See DriverPort."""
        cursor.close()

    def number(self, error: BaseException) -> tuple[int, str]:
        """See DriverPort. It knows texts only (its issue 581)."""
        text = getattr(error, "ddbc_error", "") or str(error)
        return number_of(text), text


class PythonTds:
    """A driver in Python alone: where Microsoft's finds no libraries of the system's."""

    def __init__(self) -> None:
        import pytds
        import pytds.tls
        from OpenSSL.SSL import Error as TlsError

        self._module = pytds
        self.errors: tuple[type[BaseException], ...] = (pytds.Error, TlsError, OSError, EOFError)

    def connect(self, address: Address, host: str, port: int | None) -> Any:
        """See DriverPort."""
        if address.authentication not in ("", "kerberos"):
            raise ConfigError(
                f"The driver python-tds has no authentication {address.authentication}: {_NEEDED}.",
                code="UW-MS-001",
                remedy="Set source.driver: mssql-python",
            )
        # Its own check of the name uses what newer pyOpenSSL has not, and takes SQL01 for QL01 (1.17.1).
        self._module.tls.validate_host = lambda cert, name: names_host(
            cert.to_cryptography(), address.host_in_certificate or name.decode()
        )
        return self._module.connect(
            dsn=f"{host}\\{address.instance}" if address.instance and port is None else host,
            port=None if address.instance and port is None else port or DEFAULT_PORT,
            database=address.database,
            user=address.user or None,
            password=address.password or None,
            use_sso=address.authentication == "kerberos",
            cafile=self._ca(address) if address.encrypt else None,
            validate_host=True,
            timeout=address.read_timeout_s,
            login_timeout=LOGIN_TIMEOUT_S,
            appname=PROGRAM,
            autocommit=True,
            disable_connect_retry=True,
        )

    def _ca(self, address: Address) -> str:
        if address.trust:
            raise ConfigError(
                f"The driver python-tds checks every certificate; trust_server_certificate: {_NEEDED}.",
                code="UW-MS-001",
                remedy="Add ?ca=/path/of/the/ca.pem to source.url, or set source.driver: mssql-python",
            )
        usual = ssl.get_default_verify_paths()
        return address.ca or usual.cafile or usual.openssl_cafile

    def execute(self, connection: Any, sql: str, parameters: Sequence[Parameter]) -> Any:
        """See DriverPort."""
        cursor = connection.cursor()
        if parameters:
            binary = self._module.Binary  # what is bytes alone would go as text
            values = tuple(binary(value) if isinstance(value, bytes) else value for value in parameters)
            cursor.execute(sql.replace("%", "%%").replace(PARAMETER, "%s"), values)
        else:
            cursor.execute(sql)
        return cursor

    def stop(self, cursor: Any) -> None:
        """See DriverPort."""
        cursor.cancel()
        cursor.close()

    def number(self, error: BaseException) -> tuple[int, str]:
        """See DriverPort."""
        if isinstance(error, TimeoutError) and error.__cause__ is not None:
            error = error.__cause__  # it has tried for as long as it may, and says nothing itself
        number, text = getattr(error, "number", 0) or 0, getattr(error, "text", "") or str(error)
        # Of several errors it has the last one's number; that one follows "cannot open database".
        return number_of(str(error)) if number == LOGIN_FAILED else number, text


_TRUST_LOCK: Final = threading.Lock()


@contextmanager
def trusting(ca: str) -> Iterator[None]:
    """Have OpenSSL trust an authority beside those of the machine, for as long as a connection is made.

    The ODBC drivers take no file of authorities; but where a context is made meanwhile for another purpose, it has to
    find all that it would have found. Windows has a store of its own instead.
    """
    if not ca:
        yield
        return
    with _TRUST_LOCK, tempfile.NamedTemporaryFile(suffix=".pem") as bundle:
        # Looked at under the lock: else they may be those of another thread, and gone when they are read.
        before, usual = os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile
        try:
            for file in filter(None, (usual, ca)):
                bundle.write(Path(file).read_bytes() + b"\n")
            bundle.flush()
        except OSError as error:
            raise ConfigError(
                f"The file of certificates {ca} can't be read.", code="UW-MS-001", remedy="Correct ca in source.url."
            ) from error
        os.environ["SSL_CERT_FILE"] = bundle.name
        try:
            yield
        finally:
            del os.environ["SSL_CERT_FILE"]
            if before is not None:
                os.environ["SSL_CERT_FILE"] = before


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for this host: by its alternative names, as RFC 6125 has it; addresses too."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    with suppress(ValueError):
        return ip_address(host) in names.get_values_for_type(x509.IPAddress)
    _, _, domain = host.lower().partition(".")
    known = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return host.lower() in known or (bool(domain) and f"*.{domain}" in known)


def _braced(value: str) -> str:
    """A value in an ODBC connection string, whatever is in it."""
    return value if value.replace(".", "").replace("_", "").isalnum() else "{" + value.replace("}", "}}") + "}"


_DRIVERS: Final[dict[str, Callable[[], DriverPort]]] = {
    "mssql-python": MssqlPython,
    "python-tds": PythonTds,
}


def load_driver(driver: Driver) -> DriverPort:
    """Raises OperatorError where the driver is not installed."""
    try:
        return _DRIVERS[driver]()
    except ImportError as error:
        raise OperatorError(
            f"The driver {driver} is not installed, or does not load: {one_line(str(error))}.",
            code="UW-MS-016",
            remedy="pip install 'upwell[sqlserver]'",
        ) from error


class Session:
    """A connection that translates errors. It is of use after an OperatorError only, and in no transaction then."""

    def __init__(self, driver: DriverPort, address: Address, connection: Any) -> None:
        self._driver, self._connection = driver, connection
        self.address = address

    @classmethod
    def connect(cls, driver: DriverPort, address: Address) -> Session:
        """To the first host that answers. Raises UpwellError."""
        failed: UpwellError | None = None
        for host, port in address.hosts:
            try:
                session = cls(driver, address, driver.connect(address, host, port))
            except driver.errors as error:
                number, text = driver.number(error)
                failed = meaning(number, text, str(address)) if number else unreachable(text, str(address))
                failed.__cause__ = error
                if isinstance(failed, OperatorError):
                    raise failed from error
                continue
            try:
                session._prepare()
                return session
            except BaseException:
                session.close()
                raise
        assert failed is not None, "there is at least one host"
        raise failed

    def _prepare(self) -> None:
        self.run("SET LANGUAGE us_english")  # of messages: mssql-python tells no numbers
        self.run(f"SET LOCK_TIMEOUT {LOCK_TIMEOUT_MS}")
        self.run("SET DEADLOCK_PRIORITY LOW")  # of two that block each other, we can read again

    def rows(self, sql: str, parameters: Sequence[Parameter] = ()) -> Generator[Sequence[Any], None, None]:
        """A statement's rows as they come. Whoever closes the iterator gives up the rest."""
        with self._translated():
            cursor = self._driver.execute(self._connection, sql, parameters)
            ended = False
            try:
                yield from cursor
                ended = True
            finally:
                if ended:
                    cursor.close()
                else:
                    with suppress(*self._driver.errors):  # what ended it matters more
                        self._driver.stop(cursor)

    def all(self, sql: str, parameters: Sequence[Parameter] = ()) -> list[Sequence[Any]]:
        """All rows of a small result."""
        return list(self.rows(sql, parameters))

    def one(self, sql: str, parameters: Sequence[Parameter] = ()) -> Sequence[Any] | None:
        """The first row."""
        rows = self.all(sql, parameters)
        return rows[0] if rows else None

    def run(self, sql: str, parameters: Sequence[Parameter] = ()) -> int:
        """A statement without a result; how many rows it changed, where that is known."""
        with self._translated():
            cursor = self._driver.execute(self._connection, sql, parameters)
            count = int(cursor.rowcount)
            cursor.close()
            return count

    def close(self) -> None:
        """Never raises."""
        with suppress(Exception):
            self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.errors as error:
            number, text = self._driver.number(error)
            raise meaning(number, text, str(self.address)) from error


def connect(url: str, driver: Driver) -> Session:
    """A session with the database that `url` names. Raises UpwellError."""
    return Session.connect(load_driver(driver), Address.parse(url))


def quoted(*names: str) -> str:
    """A name of one or more parts as SQL has it, whatever is in it."""
    return ".".join("[" + name.replace("]", "]]") + "]" for name in names)


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "N'" + text.replace("'", "''") + "'"
