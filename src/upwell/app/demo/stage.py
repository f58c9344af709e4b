"""All that runs in the demo, set up and taken down again, and what may be done to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Final, Literal, Self

from upwell.app.demo import ways
from upwell.app.demo.aurora import Aurora
from upwell.app.demo.databases import new_database
from upwell.app.demo.internet import Internet
from upwell.app.demo.local_aws import LocalAws
from upwell.app.demo.processes import Household
from upwell.app.demo.ways import Meter, Way

Which = Literal["both", "relational", "serverless"]
BRANCHES: Final = {"both": ("north", "south"), "relational": ("north",), "serverless": ("south",)}

CAUGHT_UP_S: Final = 1.0  # while people work, rows are always on their way; this little lag is none


class Stage:
    """A context manager: set up when entered; when left, all processes are ended and all files removed."""

    def __init__(self, which: Which, source: str | None, say: Callable[[str], None]) -> None:
        """`source`: the URL of a SQL Server for the shop's databases; None: they are SQLite's. `say` is told, in a
        sentence, what is done and what happens.
        """
        self._which = which
        self._source = source
        self._say = say
        self.ways: list[Way] = []
        self.uplink = Meter()  # bytes towards AWS
        self._trouble: tuple[str, float] | None = None  # what it was, and since when it is over (monotonic)

    def __enter__(self) -> Self:
        with ExitStack() as closing_up:
            self._set_up(closing_up)
            self._closing_up = closing_up.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing_up.close()

    def _set_up(self, closing_up: ExitStack) -> None:
        household = closing_up.enter_context(Household())
        self._say("Making the shop's databases.")
        shops = {
            branch: closing_up.enter_context(closing(new_database(self._source, branch, household.folder)))
            for branch in BRANCHES[self._which]
        }
        self._say("Starting AWS: Kinesis and DynamoDB, by ministack.")
        aws = closing_up.enter_context(closing(LocalAws(household, self._say)))
        self._servers = [aws.process]
        self.internet = closing_up.enter_context(closing(Internet(aws.port)))
        if "north" in shops:
            self._say("Starting Aurora: a PostgreSQL of the demo's own.")
            aurora = closing_up.enter_context(closing(Aurora(household)))
            self._servers.append(aurora.process)
            self.ways.append(ways.relational(shops["north"], household, self.internet, aws, aurora, closing_up))
        if "south" in shops:
            self.ways.append(ways.serverless(shops["south"], household, self.internet, aws, closing_up))
        self._say("Some years of business; upwell track lets the shop's databases log what changes from now on.")
        for way in self.ways:
            way.set_up()
        self._say(f"Starting {', '.join(role.name for way in self.ways for role in way.roles)}, and the people's day.")
        for way in self.ways:
            closing_up.callback(way.close)
            way.open()

    # --- what may be done ---------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the Internet between the shop and AWS."""
        if self.internet.up:
            self.internet.cut()
            self._say("The Internet is cut: AWS stands alone, and the shop goes on working.")

    def restore(self) -> None:
        """Restore what was cut."""
        if not self.internet.up:
            self.internet.restore()
            self._trouble = ("the Internet came back", time.monotonic())
            self._say("The Internet is back.")

    def kill_publishers(self) -> None:
        """SIGKILL, in the middle of whatever they do."""
        killed = [way.publisher for way in self.ways if way.publisher.running]
        for publisher in killed:
            publisher.kill()
        if killed:
            names = " and ".join(publisher.name for publisher in killed)
            self._say(f"Killed {names} (SIGKILL), back in {ways.BACK_AFTER_S:.0f} s.")

    def end_of_day(self) -> None:
        """People go home; whatever was cut or killed comes back, so that all can arrive."""
        self._say("The people go home; what is on its way arrives.")
        for way in self.ways:
            way.send_people_home()
        self.restore()
        self._bring_back(at_once=True)

    # --- what goes on -------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """What went wrong that should not have; None as long as all is well."""
        for server in self._servers:
            if not server.running:
                return f"{server.name} ended with exit code {server.exit_code}:\n{server.last_words()}"
        return next((way.failure for way in self.ways if way.failure is not None), None)

    def tick(self) -> None:
        """What is due; several times a second."""
        self.uplink.read(self.internet.sent_bytes)
        for way in self.ways:
            way.take_readings()
        self._bring_back()
        self._tell_whether_caught_up()

    @property
    def under_way(self) -> bool:
        """Whether something has arrived at the end of each way."""
        return all(way.look is not None and any(way.look.target.values()) for way in self.ways)

    def all_equal_since(self, moment: float) -> bool:
        """Whether looks at both ends that began after this moment (monotonic) found the same rows."""
        return all(way.look is not None and way.look.equal and way.looked_at > moment for way in self.ways)

    def _bring_back(self, *, at_once: bool = False) -> None:
        back = [way.publisher for way in self.ways if way.publisher.come_back(at_once=at_once)]
        if back:
            self._trouble = ("the restart", time.monotonic())
            self._say(f"Started {' and '.join(publisher.name for publisher in back)} again.")

    def _tell_whether_caught_up(self) -> None:
        if self._trouble is None or not self.internet.up:
            return
        what, since = self._trouble
        if all(way.look is not None and way.looked_at > since and way.look.lag_s < CAUGHT_UP_S for way in self.ways):
            self._say(f"Caught up, {time.monotonic() - since:.1f} s after {what}.")
            self._trouble = None
