"""The records of retrieval: queries and documents."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Query:
    """A question, in the words of whoever asks it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Doc:
    """A passage that can be found; `title` may be empty."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """What is embedded and indexed: the title, a space and the text.

        >>> Doc("1", "Wings", "They lift.").passage
        'Wings They lift.'
        >>> Doc("2", "", "They lift.").passage
        'They lift.'
        """
        return f"{self.title} {self.text}" if self.title else self.text
