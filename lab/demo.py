"""python -m lab.demo …: as `upwell demo …`, with the stand-in for SQL Server where it says --source sqlserver."""

import argparse
import os
import sys

from lab.part import PartFailed, PartMissing
from lab.parts import StandinSqlServer
from upwell.app.cli import run


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--source")
    arguments, others = parser.parse_known_args()
    if arguments.source != "sqlserver":
        return run(["demo", *sys.argv[1:]])
    # Of the two ODBC drivers that mssql-python brings, the one that needs no libltdl on the machine.
    os.environ.setdefault("MSSQL_PYTHON_NATIVE_PROVIDER", "mssql-odbc")
    print("Starting the stand-in for SQL Server.", flush=True)
    try:
        with StandinSqlServer() as server:
            return run(["demo", "--source", server.url, *others])
    except (PartMissing, PartFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
