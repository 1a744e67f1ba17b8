"""Run in the kernel of a lesson: call what hangs on each slider at both ends and in the middle."""

import gc
import warnings

from ipywidgets import interactive


def move_all(expected):
    widgets = [thing for thing in gc.get_objects() if type(thing) is interactive]
    assert len(widgets) == expected, f"{len(widgets)} interact() are alive, not {expected}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for widget in widgets:
            for name, control in zip(widget.kwargs, widget.kwargs_widgets):
                at_once = getattr(control, "continuous_update", False)
                assert at_once is False, f"{name} redraws while it is dragged"
                for value in ends_and_middle(control):
                    widget.f(**{**widget.kwargs, name: value})


def ends_and_middle(control):
    if hasattr(control, "options"):
        pairs = all(isinstance(option, tuple) and len(option) == 2 for option in control.options)
        values = [option[1] if pairs else option for option in control.options]
        return [values[0], values[len(values) // 2], values[-1]]
    if isinstance(control.value, str):  # a text box: as it is, with a word that nobody knows, and empty
        return [control.value, f"{control.value} xyzzy", ""]
    middle = (control.min + control.max) / 2
    return [control.min, type(control.value)(middle), control.max]
