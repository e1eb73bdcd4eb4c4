"""Style of a report in HTML: light and dark, wide and narrow, screen and paper."""

STYLE = """\
:root{color-scheme:light dark;--page:#f7f6f3;--card:#fff;--ink:#1c2128;--soft:#59626f;--line:#e3e0d9;--rule:#cfcbc2;
--accent:#b3471d;--good:#17703f;--good-soft:#e4f3ea;--look:#8a5a00;--look-soft:#fbf0d9;--bad:#a8231b;--bad-soft:#fbe6e3;
--code:#f3f1ec;--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media (prefers-color-scheme:dark){:root{--page:#15171b;--card:#1d2025;--ink:#e7e9ec;--soft:#a2abb8;--line:#30343c;
--rule:#454b55;--accent:#f2916a;--good:#5fcf92;--good-soft:#17301f;--look:#e6b450;--look-soft:#33290f;--bad:#ff8b80;
--bad-soft:#3a1a17;--code:#262a31}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 var(--sans);-webkit-text-size-adjust:100%}
.report{max-width:1180px;margin:0 auto;padding:40px 28px 64px}
.over{margin:0;color:var(--accent);font-size:12px;font-weight:600;letter-spacing:.08em;text-transform:uppercase}
h1{margin:2px 0 4px;font-size:34px;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
.sub{margin:0 0 20px;color:var(--soft);font-size:16px;overflow-wrap:anywhere}
h2{margin:0 0 14px;font-size:20px;line-height:1.25;letter-spacing:-.01em}
p{margin:0 0 12px;max-width:76ch}
a{color:inherit}
.scores{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 24px;padding:0;list-style:none}
.scores li{display:flex;align-items:baseline;gap:8px;padding:8px 14px;border-radius:8px;font-size:14px}
.scores b{font-size:22px;line-height:1;font-variant-numeric:tabular-nums}
.good{color:var(--good);background:var(--good-soft)}
.look{color:var(--look);background:var(--look-soft)}
.bad{color:var(--bad);background:var(--bad-soft)}
.zero{color:var(--soft);background:none;box-shadow:inset 0 0 0 1px var(--line)}
.warnings{margin:0 0 28px;padding:18px 22px;background:var(--card);border:1px solid var(--line);
border-left:4px solid var(--accent);border-radius:8px}
.warnings h2{font-size:16px;margin:0 0 8px}
.warnings ul{margin:0;padding:0 0 0 18px}
.warnings li{margin:4px 0;max-width:92ch;overflow-wrap:anywhere}
.warnings p{margin:0}
.columns{display:grid;grid-template-columns:150px minmax(0,1fr);gap:32px}
nav{position:sticky;top:20px;align-self:start;font-size:14px}
nav ul{margin:0;padding:0;list-style:none;border-left:1px solid var(--rule)}
nav a{display:block;padding:4px 0 4px 14px;color:var(--soft);text-decoration:none}
nav a:hover,nav a:focus{color:var(--accent);text-decoration:underline}
main{min-width:0}
main section{margin:0 0 22px;padding:24px 26px 22px;background:var(--card);border:1px solid var(--line);
border-radius:10px;scroll-margin-top:12px}
dl{margin:0 0 18px}
dl div{display:grid;grid-template-columns:130px minmax(0,1fr);gap:0 18px;padding:2.5px 0;break-inside:avoid}
dl.many{columns:2;column-gap:36px}
dt{color:var(--soft);overflow-wrap:anywhere}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:0 0 20px}
table{width:100%;border-collapse:collapse;font-size:14px;line-height:1.45}
caption{padding:0 0 8px;text-align:left;color:var(--soft);font-size:13.5px;caption-side:top}
th,td{padding:7px 14px 7px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);font-weight:400}
th:last-child,td:last-child{padding-right:0}
thead th{padding-bottom:5px;color:var(--soft);font-size:12.5px;font-weight:600;border-bottom:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th.code{white-space:nowrap}
th.code:has(+td:last-child){white-space:normal}
code{font:13px/1.5 var(--mono);overflow-wrap:anywhere}
pre{margin:0 0 14px;padding:10px 14px;overflow-x:auto;background:var(--code);border-radius:6px}
.chip{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12.5px;font-weight:600;white-space:nowrap}
.figures{display:grid;grid-auto-flow:dense;grid-template-columns:repeat(auto-fit,minmax(min(100%,390px),1fr));gap:22px;align-items:start;
margin:0 0 26px}
figure{margin:0;break-inside:avoid}
figure.wide{grid-column:1/-1}
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
figcaption{margin:6px 0 0;color:var(--soft);font-size:13.5px}
section>:last-child{margin-bottom:0}
@media (prefers-color-scheme:dark){img{filter:invert(1) hue-rotate(180deg) brightness(.93);mix-blend-mode:screen}}
@media (max-width:820px){.columns{display:block}nav{position:static;margin:0 0 20px}nav ul{display:flex;flex-wrap:wrap;
gap:4px 14px;border:0}nav a{padding:2px 0;text-decoration:underline;text-underline-offset:3px}}
@media (max-width:640px){.report{padding:24px 14px 40px}h1{font-size:27px}main section{padding:18px 16px}
.warnings{padding:14px 16px}dl.many{columns:1}dl div{grid-template-columns:112px minmax(0,1fr);gap:0 12px}
dt{font-size:13.5px}
table,thead,tbody,tr,th,td,caption{display:block}thead{display:none}
tbody tr{padding:9px 0;border-bottom:1px solid var(--line)}tbody tr:last-child{border:0}
th,td{display:flex;gap:12px;padding:1px 0;border:0;text-align:left;white-space:normal}
tbody th,tbody th.code{font-weight:600;white-space:normal}td:empty{display:none}
td::before{content:attr(data-head);flex:0 0 92px;color:var(--soft);font-size:12.5px;line-height:1.65}
.number{text-align:left;white-space:normal}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ddd;--rule:#aaa;--accent:#8a3414;
--good:#17703f;--look:#7a5000;--bad:#a8231b;--code:#f6f6f6}body{font-size:10.5pt}.report{max-width:none;padding:0}nav{display:none}
.columns{display:block}main section{border:0;padding:0;margin:0 0 16pt}tr,figure,.warnings{break-inside:avoid}
h2{break-after:avoid}img{filter:none}.scroll{overflow:visible}}
"""
