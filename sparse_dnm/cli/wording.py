"""How messages name a setting on the command line: by its option, or by --set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sparse_dnm.wording import Words

OPTIONS = {
    "target_edges": "--edges",
    "budget_dtype": "--dtype",
    **{f"target_{name}": f"--{name}" for name in ("cc", "copy", "run", "timeout")},
    **{name: f"--{name}" for name in ("profile", "repeats", "drop", "categories", "sequence", "window")},
}


class CommandLine(Words):
    """The options of train; a field that has none is written --set FIELD=."""

    again = "Start a new run, with another --out or the default, and"
    elsewhere = ", with --data-dir where they are elsewhere"
    other_out = "name another directory with --out"
    no_directory = "--out must name a directory"

    def name(self, field: str) -> str:
        from sparse_dnm.cli.options import SETTING, spelled, with_marks
        from sparse_dnm.cli.train import TrainOptions

        if field in OPTIONS:
            return OPTIONS[field]
        is_option = field in with_marks(TrainOptions, SETTING)
        return spelled(TrainOptions, field) if is_option else f"--set {field}="

    def give(self, field: str, value: Any) -> str:
        name = self.name(field)
        return f"{name}{'' if name.endswith('=') else ' '}{self.text(value)}"

    def text(self, value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(map(self.text, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    def resume(self, out: Path) -> str:
        return f"continue that run with --resume {out}"

    def stopped(self, out: Path) -> str:
        return f"continue with: sparse-dnm train --resume {shlex.quote(str(out))}"
