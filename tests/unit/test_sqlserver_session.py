"""SQL Server's addresses, names in certificates, and what its errors mean."""

import os
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from lab.part import free_port
from upwell.errors import ConfigError, OperatorError, TransientError, UpwellError
from upwell.sources.sqlserver_errors import meaning, number_of, unreachable
from upwell.sources.sqlserver_session import Address, Session, literal, load_driver, names_host, quoted, trusting


def test_an_address_has_all_that_the_url_says() -> None:
    address = Address.parse("mssql://us%40er:p%2Fw%7D@sql01.corp.example:1444/my%20shop?multi_subnet_failover=yes")
    assert (address.user, address.password) == ("us@er", "p/w}")
    assert (address.host, address.port, address.database) == ("sql01.corp.example", 1444, "my shop")
    assert (address.encrypt, address.trust, address.multi_subnet) == (True, False, True)
    assert str(address) == "sql01.corp.example:1444/my shop", "without its secrets"


def test_a_failover_partner_is_tried_next() -> None:
    address = Address.parse("mssql://u:p@a:1444/d?failover_partner=b")
    assert address.hosts == [("a", 1444), ("b", 1444)]
    assert Address.parse("mssql://u:p@a/d?failover_partner=b:1500").hosts == [("a", None), ("b", 1500)]


@pytest.mark.parametrize(
    "url", ["mssql:///d", "mssql://u:p@h/d?trustservercertificate=yes", "mssql://u:p@h/d?encrypt=maybe",
            "mssql://u:p@h/d?read_timeout=soon", "mssql://u:p@h", "mssql://u:p#w@h/d", "mssql://u:p/w@h/d",
            "mssql://u:p[w@h/d"],
)  # fmt: skip
def test_what_is_wrong_with_a_url_is_said_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Address.parse(url)
    assert error.value.code == "UW-MS-001"
    assert "u:p" not in str(error.value)
    assert "'p" not in str(error.value)
    assert error.value.__cause__ is None


def certificate(*names: str) -> x509.Certificate:
    pem = trustme.CA().issue_cert(*names).cert_chain_pems[0].bytes()
    return x509.load_pem_x509_certificate(pem)


@pytest.mark.parametrize(
    ("names", "host", "fits"),
    [
        (("sql01.corp.example",), "SQL01.corp.example", True),
        (("DNS01.corp.example",), "dns01.corp.example", True),
        (("sql01.corp.example",), "01.corp.example", False),
        (("*.corp.example",), "sql01.corp.example", True),
        (("*.corp.example",), "a.sql01.corp.example", False),
        (("127.0.0.1",), "127.0.0.1", True),
        (("127.0.0.1",), "127.0.0.2", False),
        (("localhost",), "sql01", False),
    ],
)
def test_a_certificate_is_for_the_hosts_that_it_names(names: tuple[str, ...], host: str, fits: bool) -> None:
    assert names_host(certificate(*names), host) is fits


def test_an_authority_is_trusted_for_as_long_as_a_connection_is_made(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    before = os.environ.get("SSL_CERT_FILE")
    usual = {c["serialNumber"] for c in ssl.create_default_context().get_ca_certs()}
    with trusting(str(file)):
        now = {c["serialNumber"] for c in ssl.create_default_context().get_ca_certs()}
    assert now > usual, "and all others still are"
    assert os.environ.get("SSL_CERT_FILE") == before


def test_connections_made_at_once_do_not_trust_what_belongs_to_another(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))

    def connect_often(_: int) -> None:
        for _ in range(20):
            with trusting(str(file)):
                time.sleep(0.001)  # a connection takes its time, in which others begin

    before = os.environ.get("SSL_CERT_FILE")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(connect_often, range(8)))  # raises what they raise
    assert os.environ.get("SSL_CERT_FILE") == before


def test_a_file_of_certificates_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError), trusting("/nowhere/ca.pem"):
        pass


ERRORS: list[tuple[int, str, type[UpwellError], str]] = [
    (18456, "Login failed for user 'upwell'.", OperatorError, "UW-MS-002"),
    (4060, 'Cannot open database "shop" requested by the login. The login failed.', OperatorError, "UW-MS-003"),
    (1205, "Transaction (Process ID 51) was deadlocked on lock resources with another process and has been chosen as "
           "the deadlock victim. Rerun the transaction.", TransientError, "UW-MS-011"),
    (1222, "Lock request time out period exceeded.", TransientError, "UW-MS-013"),
    (3952, "Snapshot isolation transaction failed accessing database 'shop' because snapshot isolation is not allowed "
           "in this database.", TransientError, "UW-MS-015"),
    (3960, "Snapshot isolation transaction aborted due to update conflict.", TransientError, "UW-MS-015"),
    (3961, "Snapshot isolation transaction failed in database 'shop' because the object accessed by the statement has "
           "been modified by a DDL statement in another concurrent transaction.", TransientError, "UW-MS-015"),
    (229, "The VIEW CHANGE TRACKING permission was denied on the object 't', database 'shop', schema 'dbo'.",
     OperatorError, "UW-MS-004"),
    (22105, "Change tracking is not enabled on table 'dbo.t'.", OperatorError, "UW-MS-031"),
    (208, "Invalid object name 'dbo.t'.", TransientError, "UW-MS-043"),
    (102, "Incorrect syntax near ','.", OperatorError, "UW-MS-009"),
    (40613, "Database 'shop' on server 'x' is not currently available.", TransientError, "UW-MS-008"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "text", "error", "code"), ERRORS, ids=[str(row[0]) for row in ERRORS])
def test_errors_mean_the_same_by_their_number_and_by_their_text(
    number: int, text: str, error: type[UpwellError], code: str
) -> None:
    for found in (meaning(number, text, "h/d"), meaning(number_of(text), text, "h/d")):
        assert (type(found), found.code) == (error, code)


def test_an_error_that_quotes_a_value_is_told_without_it() -> None:
    found = meaning(245, "Conversion failed when converting the nvarchar value 'secret' to data type int.", "h/d")
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SSL Provider: [error:0A000086:SSL routines::certificate verify failed:unable to get local issuer]",
         "UW-MS-005"),
        ("Certificate does not match host name 'sql01'", "UW-MS-005"),
        ("IO error: Connection refused (os error 111)", "UW-MS-007"),
        ("[Errno -2] Name or service not known", "UW-MS-007"),
        ("Failed to load the driver. Please read the documentation", "UW-MS-017"),
        ("something that nobody has heard of", "UW-MS-010"),
    ],
)  # fmt: skip
def test_why_there_is_no_connection(text: str, code: str) -> None:
    assert unreachable(text, "h/d").code == code


def test_the_driver_makes_no_second_attempt_of_its_own() -> None:
    """It would also connect anew in the middle, after a failover or a restore, and nobody would know."""
    address = Address.parse(f"mssql://sa:x@localhost:{free_port()}/master")
    began = time.monotonic()
    with pytest.raises(TransientError) as refused:
        Session.connect(load_driver("mssql-python"), address)
    assert refused.value.code == "UW-MS-007"
    assert time.monotonic() - began < 5, "the driver's own second attempt comes after 10 s"


def test_names_and_texts_in_statements() -> None:
    assert quoted("dbo", "weird]name") == "[dbo].[weird]]name]"
    assert literal("it's") == "N'it''s'"
