"""python -m lab.sqlserver PORT FOLDER POSTGRES_URL PASSWORD: the stand-in for SQL Server, until the process ends."""

import argparse
import ssl
from pathlib import Path

import trustme

from lab.sqlserver.server import Server, listening


def main() -> None:
    arguments = _arguments()
    authority = _authority(arguments.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # a ticket of 1.3 would come in the middle of a packet
    # python-tds looks at the common name alone, where pyOpenSSL has no extensions any more.
    authority.issue_cert("localhost", "127.0.0.1", common_name="localhost").configure_cert(context)
    server = Server(arguments.postgres, arguments.password, f"sqlserver{arguments.port}")
    with listening(arguments.port) as listener:
        server.serve(listener, context)


def _authority(folder: Path) -> trustme.CA:
    """The one that clients trust already, where the server was there before: they have read its certificate."""
    certificate, key = folder / "ca.pem", folder / "ca-key.pem"
    if key.exists():
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(certificate))
    authority.private_key_pem.write_to_path(str(key))
    return authority


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.sqlserver", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path, help="takes ca.pem, which signs the server's certificate")
    parser.add_argument("postgres", help="URL of a PostgreSQL cluster, as a superuser")
    parser.add_argument("password", help="of sa")
    return parser.parse_args()


if __name__ == "__main__":
    main()
