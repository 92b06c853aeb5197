"""How `make test` gives its tests to several processes: pytest-xdist's --dist loadgroup, with two of its faults mended.

It counts all tests that it ever gave out after each of them, which takes 20 s for ten thousand; and where a process
ends amidst a test, it has the others run that test again, and may give one of them what is done already and wait for
ever.
"""

from typing import Any

from xdist.scheduler import LoadGroupScheduling


class Scheduling(LoadGroupScheduling):
    def _reschedule(self, node: Any) -> None:
        """Forgets the groups that are done, so that there are few to count."""
        work = self.assigned_work[node]
        for name in [name for name, group in work.items() if all(group.values())]:
            del work[name]
        super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """The test amidst which the process ended, None if it had none left; the others run the rest."""
        work = self.assigned_work.pop(node)
        left = [(group, test) for group in work.values() for test, done in group.items() if not done]
        if not left:
            return None
        group, ended = left[0]
        group[ended] = True
        self.workqueue.update({name: group for name, group in work.items() if not all(group.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return str(ended)
