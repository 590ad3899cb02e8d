"""The page about recurrent networks: its code runs, and prints what the page shows."""

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "recurrent.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_prints_what_it_shows(capsys):
    program = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    for code, text in zip(program, shown, strict=True):
        exec(code, names)
        assert capsys.readouterr().out == text
