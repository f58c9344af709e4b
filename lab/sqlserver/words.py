"""T-SQL as words: what is recognised before, or instead of, a parser's work; and batches cut into statements."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from lab.sqlserver.errors import SqlError

_WORD: Final = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<text>[nN]?'(?:[^']|'')*')
      | (?P<name>\[(?:[^\]]|\]\])*\]|"(?:[^"]|"")*")
      | (?P<hex>0[xX][0-9a-fA-F]*)
      | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
      | (?P<variable>@@?[\w$\#]+)
      | (?P<word>[^\W\d][\w$\#@]*|\#\#?\w+)
      | (?P<sign><>|<=|>=|!=|::|\+=|-=|.)""",
    re.VERBOSE | re.DOTALL,
)
# At these a statement begins, wherever they stand outside of brackets; the others follow below.
_ALWAYS: Final = {
    "DECLARE", "PRINT", "USE", "WAITFOR", "COMMIT", "ROLLBACK", "SAVE", "TRUNCATE", "ALTER", "DROP", "BACKUP",
    "RESTORE", "RAISERROR", "THROW", "CHECKPOINT", "REVOKE", "DENY",
}  # fmt: skip
STARTS: Final = _ALWAYS | {
    "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "CREATE", "SET", "WITH", "IF", "BEGIN", "EXEC", "EXECUTE", "GRANT",
    "ELSE", "END",
}  # fmt: skip
_ONE_LINERS: Final = {"SET", "DECLARE", "USE", "PRINT", "COMMIT", "ROLLBACK", "SAVE", "WAITFOR", "EXEC", "EXECUTE"}


class Word(NamedTuple):
    kind: str
    text: str
    start: int
    end: int

    @property
    def upper(self) -> str:
        return self.text.upper()

    @property
    def value(self) -> str:
        """A name without its brackets, a string without its quotes."""
        if self.kind == "name":
            return self.text[1:-1].replace(self.text[-1] * 2, self.text[-1])
        if self.kind == "text":
            return self.text[self.text.index("'") + 1 : -1].replace("''", "'")
        return self.text


def words(text: str) -> list[Word]:
    """All but spaces and comments."""
    found = []
    for match in _WORD.finditer(text):
        kind = match.lastgroup or ""
        if kind != "space":
            found.append(Word(kind, match[0], match.start(), match.end()))
    if any(word.text in {"'", '"'} and word.kind == "sign" for word in found):
        raise SqlError(105, "Unclosed quotation mark after the character string.", severity=15)
    return found


class Script:
    """A batch as a list of words with a place in it."""

    def __init__(self, text: str) -> None:
        self.text, self.words, self.at = text, words(text), 0

    @property
    def word(self) -> Word:
        return self.words[self.at] if self.at < len(self.words) else Word("end", "", len(self.text), len(self.text))

    def peek(self, ahead: int = 1) -> str:
        at = self.at + ahead
        return self.words[at].upper if at < len(self.words) else ""

    def next(self) -> Word:
        word = self.word
        self.at += 1
        return word

    def has(self, *expected: str) -> bool:
        """Takes these words if they come next."""
        ahead = [word.upper for word in self.words[self.at : self.at + len(expected)]]
        if ahead != list(expected):
            return False
        self.at += len(expected)
        return True

    def need(self, *expected: str) -> None:
        if not self.has(*expected):
            self.fail()

    def fail(self) -> None:
        raise SqlError(102, f"Incorrect syntax near '{self.word.text}'.", severity=15)

    def name(self) -> str:
        word = self.next()
        if word.kind not in {"name", "word"}:
            self.at -= 1
            self.fail()
        return word.value

    def dotted(self) -> list[str]:
        """A name of several parts; a part may be empty, as in `a..b`."""
        parts = [self.name()]
        while self.has("."):
            parts.append("" if self.word.text == "." else self.name())
        return parts

    def inside(self) -> list[Word]:
        """The words between the bracket that comes next and its other half."""
        self.need("(")
        start, depth = self.at, 1
        while depth:
            word = self.next()
            if word.kind == "end":
                self.fail()
            depth += (word.text == "(") - (word.text == ")")
        return self.words[start : self.at - 1]

    def statement(self) -> str:
        """The text from here to the end of the statement."""
        start = self.word
        first, seen, cases = start.upper, {start.upper}, 0
        depth = 0
        self.at += 1
        while self.word.kind != "end":
            word = self.word
            depth += (word.text == "(") - (word.text == ")")
            cases += word.upper == "CASE"
            if not depth and word.text == ";":
                break
            if not depth and word.kind == "word":
                if word.upper == "END" and cases:
                    cases -= 1
                elif not cases and self._begins(first, seen):
                    break
                seen.add(word.upper)
            self.at += 1
        return self.text[start.start : self.words[self.at - 1].end]

    def _begins(self, first: str, seen: set[str]) -> bool:
        """Whether another statement begins at this word, given what this one has had so far."""
        here, before, after = self.word.upper, self.words[self.at - 1].upper, self.peek()
        if here not in STARTS or before in {".", "AS"}:
            return False
        if first in _ONE_LINERS:
            return not (first in {"COMMIT", "ROLLBACK", "SAVE"} and here in {"WITH"})
        if first in {"GRANT", "REVOKE", "DENY"}:
            return here in {"IF", "BEGIN", "DECLARE", "EXEC", "GRANT"}
        if first in {"CREATE", "ALTER", "DROP"}:
            return here in {"SELECT", "INSERT", "DECLARE", "EXEC", "BEGIN", "CREATE", "ELSE", "END", "GRANT"} or (
                here == "ALTER" and after in {"TABLE", "DATABASE"}
            )
        if here == "SELECT":
            joined = before in {"ALL", "UNION", "EXCEPT", "INTERSECT"}
            return not joined and ("VALUES" in seen or first not in {"INSERT", "WITH", "MERGE"} or "SELECT" in seen)
        if here == "IF":
            return before != "TABLE"
        if here in {"INSERT", "UPDATE", "DELETE"}:
            return first not in {"MERGE", "WITH"} and before not in {"ON", "FOR"}
        if here == "SET":
            return not seen & {"UPDATE", "MERGE"} or ("MERGE" not in seen and "SET" in seen)
        if here == "WITH":
            return False
        return here in _ALWAYS or here in {"BEGIN", "ELSE", "END", "EXEC", "EXECUTE", "MERGE", "CREATE", "GRANT"}


def joined(parts: Sequence[Word], text: str) -> str:
    """The text that these words cover."""
    return text[parts[0].start : parts[-1].end] if parts else ""


def by_commas(parts: Sequence[Word]) -> list[list[Word]]:
    """Cut at the commas that are not inside of brackets."""
    found: list[list[Word]] = [[]]
    depth = 0
    for word in parts:
        depth += (word.text == "(") - (word.text == ")")
        if word.text == "," and not depth:
            found.append([])
        else:
            found[-1].append(word)
    return [part for part in found if part]
