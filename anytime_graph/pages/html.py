"""One self-contained page of HTML: its frame, its look in light and dark, and harmless text in it."""

from __future__ import annotations

import html

from anytime_graph.text import harmless

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fdfdfc; --faint: #646b76;
  --rule: #d9dce0; --band: #f1f3f5; --shade: #00000026; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #16181b; --faint: #9aa1ab;
  --rule: #34383e; --band: #1e2125; --shade: #ffffff38; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
h3 { margin-top: 2rem; font-size: 1rem; } h1, h2, h3 { overflow-wrap: anywhere; }
p { max-width: 46rem; color: var(--faint); } p.strong { margin: .2rem 0; color: var(--ink); }
pre { padding: .75rem 1rem; border-radius: .4rem; background: var(--band); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1.5rem 0; max-width: 46rem; } figure svg { width: 100%; height: auto; }
figure text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; background: linear-gradient(to right, var(--paper) 30%, transparent),
  linear-gradient(to left, var(--paper) 30%, transparent) 100% 0,
  linear-gradient(to right, var(--shade), transparent),
  linear-gradient(to left, var(--shade), transparent) 100% 0; background-repeat: no-repeat;
  background-size: 3rem 100%, 3rem 100%, 1rem 100%, 1rem 100%;
  background-attachment: local, local, scroll, scroll; }
.wide:focus-visible { outline: 2px solid var(--faint); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: pre; vertical-align: top; } th { color: var(--faint); font-weight: 600; }
th:first-child, td:first-child { text-align: left; } td:first-child { font-weight: 600; }
"""
# The shade at an edge of .wide is covered by the paper once that edge is reached, so a table that can be
# scrolled shows to which side.


def document(title: str, body: str, style: str = "") -> str:
    """A page with this body, which is HTML. style: more CSS. It needs no network and no script."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """A text as text of a page: never markup, without control characters and reversals."""
    return html.escape(harmless(text))
