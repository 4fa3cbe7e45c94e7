"""What in-batch negatives cost a device: bytes sent in a step and bytes of scores held, as closed forms."""

import dataclasses

from retrieval.towers.loss import Contrastive

_FLOAT = 4
# Numbers that go round with each query beside its vector, forward and backward: its number in the batch and its own
# document's id both ways, five sums forward, two norms backward (`retrieval.towers.ring`).
_PER_QUERY = 2 * 2 + 5 + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativesTraffic:
    """The loss of one batch, by the sizes that its cost depends on.

    Attributes:
      contrastive: Matryoshka dims, masks, and which of the two ways is taken.
      num_queries: B.
      num_documents: P, of each query.
      num_dims: E.
      num_devices: that the batch is split over.
      num_known: M, known positives of each query.
      groups: whether documents have groups of near-duplicates.
    """

    contrastive: Contrastive
    num_queries: int
    num_documents: int
    num_dims: int
    num_devices: int
    num_known: int = 1
    groups: bool = False

    @property
    def gather_sent_bytes(self) -> int:
        """Of the vectors, sent by a device where all are gathered: once, and their gradients added up.

        The compiler gathers the side that has fewer vectors, the queries. It is taken to scatter the sum of the
        gradients; where it can only add them up everywhere, as on CPU, that part is twice as much.
        """
        others = self.num_devices - 1
        return sum(2 * _FLOAT * self.num_queries * dims * others // self.num_devices for dims, _ in self._prefixes)

    @property
    def ring_sent_bytes(self) -> int:
        """Of everything that a device sends where queries go round: forward once, backward with their gradients."""
        columns = 2 * (self.num_known + self.groups) + _PER_QUERY
        return (
            0
            if self.num_devices == 1
            else sum(_FLOAT * self.num_queries * (3 * dims + columns) for dims, _ in self._prefixes)
        )

    def score_bytes(self, negatives: str) -> int:
        """Of one float32 table of scores, as large as a device ever holds them."""
        here = self.num_queries // self.num_devices
        there = here if negatives == "ring" else self.num_queries
        return _FLOAT * here * there * self.num_documents

    @property
    def text(self) -> str:
        """Which way is taken and what it costs, beside the other one, in a line."""
        chosen = self.contrastive.negatives
        other = "gather" if chosen == "ring" else "ring"
        return (
            f"negatives of {self.num_queries} queries over {self.num_devices} devices: {self._cost(chosen)}; "
            f"{self._cost(other)}"
        )

    @property
    def _prefixes(self) -> tuple[tuple[int, float], ...]:
        return self.contrastive.prefixes(self.num_dims)

    def _cost(self, negatives: str) -> str:
        sent = self.ring_sent_bytes if negatives == "ring" else self.gather_sent_bytes
        verb = "sends" if negatives == self.contrastive.negatives else "would send"
        scores = self.score_bytes(negatives)
        return f"{negatives} {verb} {sent:,} bytes from each device, with {scores:,} bytes of scores at a time"
