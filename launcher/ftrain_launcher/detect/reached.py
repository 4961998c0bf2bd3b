"""Pure: of a node that the controller does not hear any more, whether only a link to it is cut.

The other nodes' daemons are asked to reach its daemon. If none can, it is lost, or cut off from everybody; if all can,
its agent is. Where some do and others do not, the node runs, and what is cut are the links of those that do not. Which
way they are cut only its own measurements would tell, and nobody can ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain_launcher.detect.links import Matrix
from ftrain_launcher.detect.verdict import Kind, Link, Verdict

_CONFIDENCE = 0.9
_LISTED_MAX = 8


def judge_reach(figures: Matrix, nodes: Mapping[int, str], generation: int) -> Verdict | None:
    """The links that are cut; None: the figures do not show that it is those.

    Args:
        figures: from each of the others to the node in question, as far as they could be asked.
        nodes: names by position.
        generation: in which it was so.
    """
    cut = sorted(pair for pair, figure in figures.items() if figure.failure)
    well = sorted(pair for pair, figure in figures.items() if not figure.failure)
    if not cut or not well:
        return None
    node = nodes.get(cut[0][1], str(cut[0][1]))
    not_from, still_from = (_names([source for source, _ in pairs], nodes) for pairs in (cut, well))
    return Verdict(
        kind=Kind.COMMUNICATION_HANG,
        generation=generation,
        links=tuple(Link(*pair) for there in cut for pair in (there, there[::-1])),
        confidence=_CONFIDENCE,
        sentence=f"{node} runs, and is reached from {still_from}, but not from {not_from}: the link is cut, one way or "
        "both",
        details={
            f"link {nodes.get(source, source)} -> {node}": f"cut: {figures[source, end].failure}" for source, end in cut
        },
    )


def _names(positions: list[int], nodes: Mapping[int, str]) -> str:
    listed = ", ".join(str(nodes.get(position, position)) for position in positions[:_LISTED_MAX])
    more = len(positions) - _LISTED_MAX
    return f"{listed} and {more} more" if more > 0 else listed
