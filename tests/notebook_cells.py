"""A notebook's code, run cell by cell in this process with parameters of one's own."""

import re


def run_cells(script, folder, **parameters):
    """The code of a notebook's twin with these parameters, `out` being `folder`; what its cells define."""
    cells = re.split(r"(?m)^# %%(.*)$", script.read_text())[1:]
    scope = {"__name__": "__main__"}
    for head, code in zip(cells[::2], cells[1::2], strict=True):
        if "markdown" not in head:
            exec(compile(code, str(script), "exec"), scope)
        if "parameters" in head:
            assert set(parameters) | {"out"} <= set(scope)
            scope |= {**parameters, "out": str(folder)}
    return scope
