"""The two ways from a shop to AWS: the product's own roles as processes, and a look at both ends."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

from upwell.app.demo.aurora import Aurora
from upwell.app.demo.databases import Database
from upwell.app.demo.equality import Equality, Tables, compare, read_aurora, read_dynamodb, read_shop
from upwell.app.demo.internet import Internet
from upwell.app.demo.local_aws import FAKE_CREDENTIALS, REGION, LocalAws
from upwell.app.demo.processes import DemoFailed, Household, Process, environment
from upwell.app.demo.shop import Person, fill_shop
from upwell.aws import AwsService

STREAM: Final = "legacy-shop"
SHARDS: Final = 2
PREFIX: Final = "legacy-shop-"
PEOPLE: Final = 3  # in each branch
LOOK_EVERY_S: Final = 0.8
METER_S: Final = 4.0
BACK_AFTER_S: Final = 3.0  # from a publisher's end to its restart
NOT_READY: Final = 3  # the exit code of what finds something missing that it needs

# One file for both roles of a pipeline; each finds its way to AWS, and its secrets, in its environment.
_RELATIONAL: Final = """\
pipeline: legacy-shop-north
source: {url: "${SHOP_URL}", poll_interval: 200ms}
destination:
  kinesis: {stream: legacy-shop, region: eu-west-1, endpoint_url: "${AWS_URL}"}
subscriber: {target: "${AURORA_URL}"}
tables: {"*": {}}
state: north-state.db
"""
_SERVERLESS: Final = """\
pipeline: legacy-shop-south
source: {url: "${SHOP_URL}", poll_interval: 200ms}
destination:
  dynamodb: {table_prefix: legacy-shop-, region: eu-west-1, endpoint_url: "${AWS_URL}"}
tables: {"*": {}}
state: south-state.db
"""


class Role:
    """`upwell publish` or `upwell subscribe` as a process that can be killed and comes back."""

    def __init__(
        self,
        household: Household,
        name: str,
        command: str,
        config: Path,
        env: Mapping[str, str],
        internet: Internet | None = None,
    ) -> None:
        """`internet`: what it needs to start; without it, it ends and comes back, as any service manager has it."""
        self.name = name
        self.killed = False  # the last time that it ended
        self._internet = internet
        self._started_at = 0.0  # monotonic
        self._household = household
        self._command = upwell(command, config)
        self._config = config
        self.env = {**env, "HOME": str(config.parent), "TMPDIR": str(config.parent)}
        self._back_at: float | None = None
        self._process: Process | None = None

    def start(self) -> None:
        self._back_at, self.killed, self._started_at = None, False, time.monotonic()
        log = self._config.with_name(f"{self.name}.log")
        self._process = Process(self._household, self.name, self._command, log, env=self.env, cwd=self._config.parent)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def back_in_s(self) -> float | None:
        """Until it is started again; None where it runs, or has ended for good."""
        return None if self._back_at is None else max(0.0, self._back_at - time.monotonic())

    @property
    def failure(self) -> str | None:
        """Why it ended by itself, which it should not."""
        if self._process is None or self._back_at is not None or self._process.running or self._lacks_internet:
            return None
        return f"{self.name} ended with exit code {self._process.exit_code}:\n{self._process.last_words()}"

    def kill(self) -> None:
        """SIGKILL; it comes back a little later."""
        if self._process is not None and self._back_at is None:
            self._process.kill()
            self._back_at, self.killed = time.monotonic() + BACK_AFTER_S, True

    def come_back(self, *, at_once: bool = False) -> bool:
        """Start it again where its time has come; whether it was."""
        if self._back_at is None and self._lacks_internet:
            self._back_at = time.monotonic() + BACK_AFTER_S
        if self._back_at is None or (not at_once and time.monotonic() < self._back_at):
            return False
        self.start()
        return True

    @property
    def _lacks_internet(self) -> bool:
        """Whether it ended because of that."""
        return (
            self._process is not None
            and self._process.exit_code == NOT_READY
            and self._internet is not None
            and self._internet.was_cut_since(self._started_at)
        )

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.ask_to_stop()

    def await_end(self) -> None:
        if self._process is not None:
            self._process.await_end()


class Meter:
    """A total, and how fast it rises."""

    def __init__(self) -> None:
        self.total = 0
        self._readings: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, more: int) -> None:
        """It rose; counts for the speed from the next `read` on."""
        self.total += more

    def read(self, total: int) -> None:
        """It is this much now."""
        self.total = total
        now = time.monotonic()
        self._readings.append((now, total))
        while self._readings[1][0] < now - METER_S:
            self._readings.popleft()

    @property
    def per_s(self) -> float:
        """Over the last seconds."""
        (first_at, first), (last_at, last) = self._readings[0], self._readings[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


class Way:
    """A branch of the shop, the people in it, and its way to AWS."""

    def __init__(
        self, shop: Database, title: str, config: Path, roles: Sequence[Role], read_target: Callable[[], Tables]
    ) -> None:
        """`title`: of its far end. `roles`: the publisher and, where there is one, the subscriber."""
        self.shop = shop
        self.title = title
        self.roles = roles
        self.look: Equality | None = None  # the newest
        self.looked_at = 0.0  # monotonic, when that look began
        self.changed = Meter()  # rows, by people
        self.arrived = Meter()  # rows that were seen to change in the target
        self._config = config
        self._read_target = read_target
        self._people: list[Person] = []
        self._looker = threading.Thread(target=self._keep_looking, name=f"looking at {shop.branch}", daemon=True)
        self._go_home = threading.Event()
        self._look_away = threading.Event()
        self._blind: BaseException | None = None  # why nobody looks any more

    @property
    def publisher(self) -> Role:
        return self.roles[0]

    @property
    def subscriber(self) -> Role | None:
        return self.roles[1] if len(self.roles) > 1 else None

    @property
    def failure(self) -> str | None:
        """What went wrong that should not have; None as long as all is well."""
        for role in self.roles:
            if role.failure is not None:
                return role.failure
        for error in (self._blind, *(person.error for person in self._people)):
            if error is not None:
                return f"{type(error).__name__}: {error}"
        return None

    def set_up(self) -> None:
        """A shop whose database keeps a log of changes, by `upwell track`. Raises DemoFailed."""
        fill_shop(self.shop, random.Random())
        done = subprocess.run(
            upwell("track", self._config),
            capture_output=True,
            text=True,
            check=False,
            cwd=self._config.parent,
            env=environment(self.publisher.env),
        )
        if done.returncode:
            raise DemoFailed(f"upwell track failed:\n{done.stderr.strip()}")

    def open(self) -> None:
        """The roles run, people work, and somebody looks at both ends from now on."""
        for role in self.roles:
            role.start()
        self._people = [Person(self.shop, random.Random(), self._go_home) for _ in range(PEOPLE)]
        for thread in (*self._people, self._looker):
            thread.start()

    def send_people_home(self) -> None:
        """Nothing changes any more when it returns."""
        self._go_home.set()
        for person in self._people:
            if person.is_alive():
                person.join()

    def close(self) -> None:
        """End all that `open` started, however far it came."""
        self.send_people_home()
        self._look_away.set()
        if self._looker.is_alive():
            self._looker.join()
        for role in self.roles:
            role.ask_to_stop()
        for role in self.roles:
            role.await_end()

    def compare(self) -> Equality:
        """Both ends as they are now."""
        began = time.monotonic()
        with closing(self.shop.connect()) as connection:
            look = compare(partial(read_shop, connection), self._read_target)
        if self.look is not None:
            self.arrived.add(_changed(self.look.target, look.target))
        self.look, self.looked_at = look, began
        return look

    def stop_looking(self) -> None:
        """`compare` is the caller's alone from now on."""
        self._look_away.set()
        self._looker.join()

    def take_readings(self) -> None:
        """For the meters; several times a second."""
        self.changed.read(sum(person.rows_changed for person in self._people))
        self.arrived.read(self.arrived.total)

    def _keep_looking(self) -> None:
        try:
            while not self._look_away.is_set():
                self.compare()
                # Looking must not become the load: most of the time is for the work.
                self._look_away.wait(max(LOOK_EVERY_S, 3 * (time.monotonic() - self.looked_at)))
        except Exception as error:
            self._blind = error


def _changed(before: Tables, after: Tables) -> int:
    """How many rows are other than they were."""
    return sum(
        len(after[name].items() - before[name].items()) + len(before[name].keys() - after[name].keys())
        for name in before
    )


def upwell(command: str, config: Path) -> list[str]:
    """The command line of the product itself, run by this Python."""
    return [sys.executable, "-m", "upwell", command, "--config", str(config)]


def relational(
    shop: Database, household: Household, internet: Internet, aws: LocalAws, aurora: Aurora, closing_up: ExitStack
) -> Way:
    """From the north branch through Kinesis into Aurora. Makes the stream."""
    config = household.folder / "relational.yaml"
    config.write_text(_RELATIONAL)
    with closing(AwsService("kinesis", REGION, endpoint_url=aws.url)) as kinesis:
        kinesis.call("CreateStream", {"StreamName": STREAM, "ShardCount": SHARDS})
    connection = closing_up.enter_context(closing(aurora.connect()))
    env = {**FAKE_CREDENTIALS, "SHOP_URL": shop.url, "AURORA_URL": aurora.url}
    publisher = Role(household, "publisher-north", "publish", config, {**env, "AWS_URL": internet.url}, internet)
    subscriber = Role(household, "subscriber", "subscribe", config, {**env, "AWS_URL": aws.url})
    return Way(shop, "Kinesis → Aurora", config, [publisher, subscriber], partial(read_aurora, connection))


def serverless(shop: Database, household: Household, internet: Internet, aws: LocalAws, closing_up: ExitStack) -> Way:
    """From the south branch into DynamoDB."""
    config = household.folder / "serverless.yaml"
    config.write_text(_SERVERLESS)
    dynamodb = closing_up.enter_context(closing(AwsService("dynamodb", REGION, endpoint_url=aws.url)))
    env = {**FAKE_CREDENTIALS, "SHOP_URL": shop.url, "AWS_URL": internet.url}
    publisher = Role(household, "publisher-south", "publish", config, env, internet)
    return Way(shop, "DynamoDB", config, [publisher], partial(read_dynamodb, dynamodb, PREFIX))
