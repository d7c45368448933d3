"""``Watched``: controls that start a run, with the run's monitor below; what ``LaunchPanel`` and ``StartForm`` share."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets.base import LabWidget
from widgets.monitor import RunMonitor


class Watched(ipywidgets.VBox):
    """The controls above, the monitor below; without a live kernel both as they last were."""

    def __init__(self, controls: LabWidget, monitor: RunMonitor) -> None:
        self.controls, self.monitor = controls, monitor
        super().__init__([controls, monitor], layout=ipywidgets.Layout(width="100%"))

    def stop(self) -> None:
        """Ask the run to finish its step, save and end."""
        self.monitor.stop()

    def __repr__(self) -> str:
        return f"{self.controls.still_text()}\n{self.monitor.still_text()}"

    def _repr_mimebundle_(self, **options: Any):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        still = self.controls.still_html() + self.monitor.still_html()
        return {**data, "text/plain": repr(self), "text/html": still}, metadata
