"""What a batch does after what: IF, WHILE, BEGIN … END and TRY around statements.

A branch that is not taken is read over, not understood: as in SQL Server, what is wrong in it is found when it runs.
"""

from collections.abc import Callable

from lab.sqlserver.errors import SqlError
from lab.sqlserver.words import STARTS, Script, joined


class Flow:
    """One run of a batch. `statement` does one, and is told which error a CATCH is about; `holds`: of a condition."""

    def __init__(
        self, script: Script, statement: Callable[[str, SqlError | None], None], holds: Callable[[str], bool]
    ) -> None:
        self._script, self._statement, self._holds = script, statement, holds
        self._caught: SqlError | None = None

    def run(self) -> None:
        while self._script.word.kind != "end":
            self._step(active=True)

    def _step(self, *, active: bool) -> None:
        """The statement that comes next, or all that it is made of."""
        script = self._script
        if script.has(";"):
            return
        word = script.word.upper
        if word == "IF":
            self._if(active=active)
        elif word == "WHILE":
            self._while(active=active)
        elif word == "BEGIN" and script.peek() == "TRY":
            self._try(active=active)
        elif word == "BEGIN" and script.peek() not in {"TRAN", "TRANSACTION"}:
            script.next()
            self._until("END", active=active)
        else:
            start = script.at
            text = script.statement()
            if script.words[start].upper in {"END", "ELSE"}:
                script.at = start
                script.fail()
            if active:
                self._statement(text, self._caught)

    def _until(self, *end: str, active: bool) -> None:
        while not self._script.has(*end):
            if self._script.word.kind == "end":
                self._script.fail()
            self._step(active=active)

    def _condition(self) -> str:
        script = self._script
        start, depth = script.at, 0
        while depth or script.word.upper not in STARTS - {"ELSE", "END"}:
            word = script.next()
            if word.kind == "end":
                script.fail()
            depth += (word.text == "(") - (word.text == ")")
        return joined(script.words[start : script.at], script.text)

    def _if(self, *, active: bool) -> None:
        self._script.next()
        condition = self._condition()
        holds = active and self._holds(condition)
        self._step(active=holds)
        self._script.has(";")
        if self._script.has("ELSE"):
            self._step(active=active and not holds)

    def _while(self, *, active: bool) -> None:
        script = self._script
        script.next()
        condition = self._condition()
        body = script.at
        self._step(active=False)
        end = script.at
        while active and self._holds(condition):
            script.at = body
            self._step(active=True)
            script.at = end

    def _try(self, *, active: bool) -> None:
        script, outer = self._script, self._caught
        script.need("BEGIN", "TRY")
        start = script.at
        self._until("END", "TRY", active=False)
        end, failed = script.at, None
        if active:
            script.at = start
            try:
                self._until("END", "TRY", active=True)
            except SqlError as error:
                if error.number == 3617:  # the client wants no more
                    raise
                failed = error
        script.at = end
        script.need("BEGIN", "CATCH")
        self._caught = failed
        self._until("END", "CATCH", active=failed is not None)
        self._caught = outer
