"""Pure: where a node stands towards its job, and which of the controller's words still count for it.

It has *stopped* for generation g (no older worker runs), or it has *formed* g (its workers of g run). `Stop` and
`Form` move it on; what is older than where it stands is ignored (fencing).
"""

from __future__ import annotations

from ftrain_launcher.node.state import NodeRecord
from ftrain_launcher.to_agent import Form, Stop


class Standing:
    """One node's; all that is public is to be read."""

    def __init__(self, before: NodeRecord | None = None) -> None:
        """``before``: what an agent before this one wrote down."""
        self.stopped = 0
        """The newest generation for which older ones were stopped."""
        self.form: Form | None = None
        """The generation whose workers run here; None: none."""
        self.is_complete = False
        """All of its workers were started."""
        self.accepted: Form | None = None
        """The newest generation whose ranks it took, also if they are stopped by now."""
        self.term = 0
        """The newest controller's that was promised obedience; 0: there is but one candidate."""
        if before is not None:
            self.term, self.accepted = before.term, before.accepted
            if before.form is not None:
                self.stopped, self.form, self.is_complete = before.stopped, before.form, True

    @property
    def generation(self) -> int:
        """The number of what runs here; 0: nothing."""
        return self.form.generation if self.form else 0

    @property
    def is_forming(self) -> bool:
        """Not all of its workers were started yet."""
        return self.form is not None and not self.is_complete

    @property
    def running(self) -> Form | None:
        """What runs here, if it is not to be stopped."""
        return self.form if self.generation == self.stopped else None

    def obeys(self, stop: Stop) -> bool:
        """Whether this is of a generation to come. It may come again: who answered may not have been heard."""
        return stop.generation > self.generation and stop.generation >= self.stopped

    def begin_to_stop(self, generation: int) -> None:
        """From now on the ends of older workers are ours."""
        self.stopped = generation

    def has_stopped(self) -> None:
        """No older worker runs any more."""
        self.form, self.is_complete = None, False

    def takes(self, form: Form) -> bool:
        """Whether it is the one that was stopped for, and is not taken yet."""
        return form.generation == self.stopped > self.generation

    def begin_to_form(self, form: Form) -> None:
        """Its ranks are taken."""
        self.form = self.accepted = form

    def has_formed(self) -> None:
        """All of its workers were started."""
        self.is_complete = True
