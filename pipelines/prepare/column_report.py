"""The report of `prepare` on the columns, as JSON and as an HTML page."""

import html
import json
import pathlib

from pipelines.prepare.options import SPLITS, Options
from pipelines.whole_files import write_text


def make(
    statistics, numbers, tallies, vocabulary, options: Options, quarantine
) -> dict:
    """Return the report.

    Args:
        statistics: The `Statistics`.
        numbers: The result of `Statistics.describe_numbers`.
        tallies: The `Tally` of each table.
        vocabulary: The vocabulary.
        options: The options.
        quarantine: The `Quarantine`.

    Returns:
        JSON-safe dict. Shares are from 0 to 1.
    """
    num_good = quarantine.num_rows - quarantine.num_bad
    num_training = statistics.num_rows_counted
    columns = []
    schema = vocabulary.schema
    for feature, number in zip(schema.dense, numbers, strict=True):
        missing = 1 - number["num_values"] / max(num_good, 1)
        kind = "integer" if feature.integer else "number"
        columns.append({**number, "kind": kind, "missing_share": missing})
    tables = zip(schema.tables.items(), tallies, vocabulary.sizes, strict=False)
    for (name, positions), tally, size in tables:
        empty = int(statistics.num_empty[list(positions)].sum()) / len(positions)
        left_out = tally.num_values - tally.num_values_kept
        columns.append(
            {
                "name": name,
                "kind": "categorical",
                "missing_share": empty / max(num_training, 1),
                "num_values": tally.num_values,
                "num_distinct": tally.num_distinct,
                "num_kept": tally.num_kept,
                "below_threshold_share": left_out / max(tally.num_values, 1),
                "vocabulary_size": size,
                "top": [[_text(value), count] for value, count in tally.top],
            }
        )
    return {
        "num_rows_read": quarantine.num_rows,
        "num_bad_rows": quarantine.num_bad,
        "bad_rows": dict(quarantine.reasons.most_common()),
        "splits": {
            split: {
                "num_rows": int(num_rows),
                "click_rate": float(clicks / num_rows) if num_rows else None,
            }
            for split, num_rows, clicks in zip(
                SPLITS, statistics.num_rows, statistics.num_clicks, strict=True
            )
        },
        "negative_sampling": {
            "rate": options.negative_sampling_rate,
            "num_left_out": statistics.num_left_out,
            "click_rate_before": int(statistics.num_clicks[0]) / num_training,
        },
        "min_count": options.min_count,
        "max_vocabulary_size": options.max_vocabulary_size,
        "hash_buckets": options.hash_buckets,
        "columns": columns,
    }


def _text(value: bytes) -> str:
    return value[:40].decode("utf-8", "backslashreplace")


def write(report: dict, folder) -> None:
    """Write `report.json` and `report.html`."""
    folder = pathlib.Path(folder)
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "report.html", to_html(report))


def to_html(report: dict) -> str:
    """Return the report as a self-contained HTML page."""
    return _PAGE.format(
        style=_STYLE,
        splits="".join(
            f"<tr><td>{name}</td><td>{split['num_rows']:,}</td>"
            f"<td>{_percent(split['click_rate'])}</td></tr>"
            for name, split in report["splits"].items()
        ),
        rows=f"{report['num_rows_read']:,}",
        bad=f"{report['num_bad_rows']:,}",
        reasons="".join(
            f"<li>{html.escape(reason)}: {count:,}</li>"
            for reason, count in report["bad_rows"].items()
        ),
        sampling=_describe_sampling(report),
        threshold=report["min_count"],
        integers="".join(
            _number_row(c) for c in report["columns"] if c["kind"] != "categorical"
        ),
        categories="".join(
            _category_row(c) for c in report["columns"] if c["kind"] == "categorical"
        ),
    )


def _describe_sampling(report):
    sampling = report["negative_sampling"]
    if sampling["rate"] == 1:
        return ""
    return (
        f"<p>{sampling['num_left_out']:,} training rows without a click are left out "
        f"(negative_sampling_rate={sampling['rate']:g}). Among all training rows "
        f"{_percent(sampling['click_rate_before'])} are clicks. The counts of "
        "categories below include all training rows.</p>"
    )


def _number_row(column):
    quantiles = column["quantiles"]
    shown = ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1")
    cells = "".join(
        f"<td>{_short(quantiles[q])}</td>" if q in quantiles else "<td>–</td>"
        for q in shown
    )
    return (
        f"<tr><td>{column['name']}</td>{_bar(column['missing_share'])}"
        f"<td>{column['num_distinct']:,}</td>{cells}</tr>"
    )


def _short(number):
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"


def _category_row(column):
    total = max(column["num_values"], 1)
    top = ", ".join(
        f"{html.escape(value)} {_percent(count / total)}"
        for value, count in column["top"][:3]
    )
    return (
        f"<tr><td>{column['name']}</td>{_bar(column['missing_share'])}"
        f"<td>{column['num_distinct']:,}</td><td>{column['vocabulary_size']:,}</td>"
        f"{_bar(column['below_threshold_share'])}<td class=text>{top}</td></tr>"
    )


def _bar(share):
    return (
        f"<td class=bar><i style='width:{100 * share:.1f}%'></i>"
        f"<span>{_percent(share)}</span></td>"
    )


def _percent(share):
    return "–" if share is None else f"{share:.1%}"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem;
       padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .7rem; text-align: right; border-bottom: 1px solid #e5e8ec; }
th { font-weight: 600; color: #5a6675; } td:first-child, th:first-child, .text
{ text-align: left; } .text { color: #5a6675; }
.bar { position: relative; min-width: 7rem; }
.bar i { position: absolute; left: 0; top: .25rem; bottom: .25rem;
         background: #f2b155; opacity: .55; }
.bar span { position: relative; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Prepared data</title>
<style>{style}</style></head><body>
<h1>Prepared data</h1>
<table><tr><th>split</th><th>rows</th><th>clicks</th></tr>{splits}</table>
<p>{rows} rows read, {bad} of them bad.</p><ul>{reasons}</ul>{sampling}
<h2>Numbers in all rows</h2>
<table><tr><th>column</th><th>missing</th><th>distinct</th><th>smallest</th><th>5%</th>
<th>25%</th><th>median</th><th>75%</th><th>95%</th><th>largest</th></tr>{integers}
</table>
<h2>Categories in the training rows</h2>
<p>Values seen fewer than {threshold} times, or beyond the maximum number of ids, share
id 0.</p>
<table><tr><th>column</th><th>missing</th><th>distinct</th><th>ids</th>
<th>without an id</th><th class=text>most frequent</th></tr>{categories}</table>
</body></html>
"""
