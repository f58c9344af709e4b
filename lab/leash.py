"""Runs one server and ends it when its owner is gone, however the owner went.

    python leash.py OPTIONS COMMAND...      OPTIONS is a JSON object, see `Options`

The owner holds the other end of standard input. Each line on it is the name of a signal for the server. When it closes,
because the owner closed it or was killed, the leash stops the server and removes its folder. No signal to the owner can
prevent that, on any Unix, and no thread of the owner is bound to it: hence a process of its own and not a death signal.

Standard library only, and no import from the lab: it starts in milliseconds, once per server.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
from typing import TypedDict

KILL_AFTER_S = 10.0


class Options(TypedDict):
    """What the leash needs to know besides the command."""

    user: str | None  # the system user to run the server as; None: the owner's own
    log: str  # file that takes what the server prints
    last_signal: str  # how the server is asked to stop when the owner is gone
    remove: str | None  # folder to remove then


def obey(server: subprocess.Popen[bytes], options: Options, orphaned: threading.Event) -> None:
    """Passes the owner's signals on; at the end of them, stops the server."""
    with open(0, "rb", buffering=0, closefd=False) as owner:  # sys.stdin's lock would trip the interpreter's exit
        for line in owner:
            server.send_signal(signal.Signals[line.decode().strip()])
    orphaned.set()
    server.send_signal(signal.Signals[options["last_signal"]])
    try:
        server.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        server.kill()


def main() -> int:
    options: Options = json.loads(sys.argv[1])
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler and not SIG_IGN, which the server would inherit.
        signal.signal(ignored, lambda *_: None)
    with open(options["log"], "ab") as log:
        server = subprocess.Popen(
            sys.argv[2:],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=options["user"],
            group=None if options["user"] is None else _group_of(options["user"]),
            extra_groups=None if options["user"] is None else [],
        )
    orphaned = threading.Event()
    threading.Thread(target=obey, args=(server, options, orphaned), daemon=True).start()
    status = server.wait()
    if orphaned.is_set() and options["remove"]:
        shutil.rmtree(options["remove"], ignore_errors=True)
    return status if status >= 0 else 128 - status


def _group_of(user: str) -> int:
    import pwd  # only where a user is named at all, which is never on Windows

    return pwd.getpwnam(user).pw_gid


if __name__ == "__main__":
    sys.exit(main())
