"""A small reader of LaTeX tables: what TeX would stumble over, or run, is an error."""

import re

# What our tables are made of, and the characters that they show; nothing that reads, writes or
# defines is among them.
COMMANDS = frozenset(
    re.findall(
        r"\S+",
        r"""
    \begin \end \centering \caption \label \toprule \midrule \bottomrule \cmidrule \multicolumn
    \textbf \emph \textsuperscript \footnotesize \scriptsize \setlength \tabcolsep \pm \times \\ \,
    \textbackslash \{ \} \$ \& \# \% \_ \textasciitilde \textasciicircum \textless \textgreater
    \textbar \symbol \textendash \textemdash \textquoteleft \textquotedblleft \textquotedblright
    \dots
    \ss \o \O \l \L \ae \AE \oe \OE \i \` \' \^ \~ \= \u \. \" \r \H \v \c
        """,
    )
)


def check_latex(text: str) -> None:
    """Check that a document's tables balance, and hold known commands alone.

    Raises:
        ValueError: With what is wrong.
    """
    if not text.isascii():
        raise ValueError("characters beyond ASCII")
    # A comment ends its line; an escaped per cent sign starts none.
    text = re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*", r"\1", text)
    depth, math = 0, False
    opened: list[str] = []
    tokens = re.findall(r"\\[A-Za-z]+|\\.|[^\\]|\\$", text, flags=re.DOTALL)
    for i, token in enumerate(tokens):
        if token[0] == "\\" and token not in COMMANDS:
            raise ValueError(f"unknown command {token}")
        if token == r"\\" and re.match(r"\s*[\[*]", "".join(tokens[i + 1 : i + 9])):
            raise ValueError("an option after a line break")
        depth += (token == "{") - (token == "}")
        if depth < 0:
            raise ValueError("a brace is closed that was not opened")
        math ^= token == "$"
        if token in ("#", "^", "~", "_"):
            raise ValueError(f"a bare {token}")
        if token in (r"\begin", r"\end"):
            name = "".join(tokens[i + 1 : i + 12]).partition("}")[0].removeprefix("{")
            if token == r"\begin":
                opened.append(name)
            elif not opened or opened.pop() != name:
                raise ValueError(f"\\end{{{name}}} ends nothing")
    if depth or math or opened:
        raise ValueError(f"left open: {depth} braces, mathematics {math}, {opened}")
    for aligned, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL
    ):
        _check_rows(aligned, body)


def _check_rows(aligned: str, body: str) -> None:
    body = re.sub(r"\\(toprule|midrule|bottomrule|cmidrule\(lr\)\{\d+-\d+\})", "", body)
    for row in re.split(r"\\\\", body)[:-1]:
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        cells = len(re.findall(r"(?<!\\)&", row)) + 1 + sum(n - 1 for n in spans)
        if cells != len(aligned):
            raise ValueError(f"{cells} cells in {len(aligned)} columns: {row.strip()}")
