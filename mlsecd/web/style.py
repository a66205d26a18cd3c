"""The landing page's looks: one inline sheet, allowed by its hash alone, and an icon in the verdict's colour."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

__all__ = ["CSP", "STYLE", "icon"]

STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2130;--dim:#5d6678;--line:#e3e6ec;--link:#2456c8;
--red:#b42318;--redbg:#fdecea;--amber:#93600a;--amberbg:#fdf3dc;--blue:#1f5fbf;--bluebg:#e8f0fd;
--violet:#6b3fc0;--violetbg:#f1ebfd;--green:#1a7a44;--greenbg:#e6f5ec;--grey:#5d6678;--greybg:#eceef2}
@media(prefers-color-scheme:dark){:root{--bg:#0e1116;--card:#161b23;--ink:#e4e8ef;--dim:#95a0b3;--line:#262d39;
--link:#82aaff;--red:#ff8a80;--redbg:#3a1616;--amber:#f2c063;--amberbg:#33270e;--blue:#8ab4ff;--bluebg:#14253f;
--violet:#c3a6ff;--violetbg:#271a42;--green:#6fd59a;--greenbg:#10301f;--grey:#95a0b3;--greybg:#222936}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{display:flex;flex-wrap:wrap;gap:.15rem 1rem;align-items:baseline;padding-top:1.1rem;padding-bottom:.8rem}
header b{font-size:1.05rem;letter-spacing:.01em}
header .right{margin-left:auto}
.dim,header,footer,td small{color:var(--dim)}
header b,header .host{color:var(--ink)}
a{color:var(--link);text-decoration:none}
a:hover{text-decoration:underline}
.verdict{border-radius:.8rem;padding:1.15rem 1.4rem;border-left:.45rem solid}
.verdict h1{margin:0;font-size:1.75rem;line-height:1.25;font-weight:650;letter-spacing:-.01em}
.verdict ul{margin:.4rem 0 0;padding:0;list-style:none;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:.9rem 0 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:.7rem}
.tile{padding:.6rem .95rem .7rem}
.tile span{display:block;color:var(--dim);font-size:.82rem}
.tile strong{font-size:1.2rem;font-weight:620;font-variant-numeric:tabular-nums}
.tile em{font-style:normal;color:var(--dim);font-size:.82rem}
section{margin-top:1.7rem}
h2{font-size:1rem;margin:0 0 .5rem;font-weight:640}
h2 small{font-weight:400;color:var(--dim);font-size:.85rem;margin-left:.5rem}
.card{overflow-x:auto}
.card p{margin:0;padding:.85rem 1.1rem;color:var(--dim)}
table{border-collapse:collapse;width:100%}
th{font-size:.78rem;font-weight:560;color:var(--dim);text-align:left;padding:.5rem .6rem;white-space:nowrap}
td{border-top:1px solid var(--line);padding:.5rem .6rem;vertical-align:top;overflow-wrap:break-word}
th:first-child,td:first-child{padding-left:1.1rem}
th:last-child,td:last-child{padding-right:1.1rem}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.t,code.t{white-space:nowrap;font-variant-numeric:tabular-nums}
td.w{width:45%}
td small{display:block;font-size:.85rem}
td code{overflow-wrap:anywhere}
code{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.chip{display:inline-block;border-radius:1rem;padding:0 .6rem;font-size:.8rem;font-weight:560;white-space:nowrap}
.red{color:var(--red);background:var(--redbg);border-color:var(--red)}
.amber{color:var(--amber);background:var(--amberbg);border-color:var(--amber)}
.blue{color:var(--blue);background:var(--bluebg);border-color:var(--blue)}
.violet{color:var(--violet);background:var(--violetbg);border-color:var(--violet)}
.green{color:var(--green);background:var(--greenbg);border-color:var(--green)}
.grey{color:var(--grey);background:var(--greybg);border-color:var(--grey)}
.strong{outline:1px solid currentColor;outline-offset:-1px}
details>summary{cursor:pointer;padding:.7rem 1.1rem;color:var(--dim)}
table+details,details[open]>summary{border-top:1px solid var(--line)}
details:first-child>summary{border-top:0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 1.25rem}
footer{padding-top:1.8rem;padding-bottom:2rem;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.88rem}
@media(max-width:44rem){
main,header,footer{padding-left:.8rem;padding-right:.8rem}
.verdict{padding:.95rem 1.1rem}.verdict h1{font-size:1.4rem}
.tiles{grid-template-columns:1fr 1fr;gap:.55rem}
thead{display:none}
tr{display:block;padding:.55rem 0;border-top:1px solid var(--line)}
tbody tr:first-child{border-top:0}
header .right{margin-left:0}
td,td.n,td.t,td.w,td:first-child,td:last-child{
display:grid;grid-template-columns:6.6rem 1fr;gap:.5rem;width:auto;border:0;padding:.12rem .95rem;
text-align:left;white-space:normal}
td::before{content:attr(data-h);color:var(--dim);font-size:.82rem}
td.none{display:none}
}
"""

_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

CSP: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_ICON_COLOURS: Final = {
    "red": "#d92d20",
    "amber": "#e0a016",
    "blue": "#3b7de0",
    "violet": "#8457d8",
    "green": "#2a9d5c",
    "grey": "#7a8496",
}


def icon(colour: str) -> bytes:
    """A shield, so that one of thirty tabs tells its verdict by its colour."""
    shield = "M8 1 2 3v5c0 3.4 2.5 5.9 6 7 3.5-1.1 6-3.6 6-7V3z"
    fill = _ICON_COLOURS[colour]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="{shield}" fill="{fill}"/></svg>'.encode()
    )
