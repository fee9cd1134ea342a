"""From raw rounds to the report: medians, ratios taken round by round, the table and the verdict.

Pure functions over dictionaries; the same summary is printed as text and stored as JSON.
"""

from statistics import median

import machine
from subjects import CASES

BASELINE = "haproxy"
# Above this share of a CPU taken by others, the absolute numbers are not worth quoting.
NOISY_PERCENT = 5.0


def versions(known, names):
    """What each program calls itself."""
    found = {"wrk": machine.first_line(["wrk", "--version"]), "h2load": machine.first_line(["h2load", "--version"]),
             "origin": machine.first_line(["nginx", "-v"])}
    for name in names:
        if known[name].version:
            # Envoy's line begins with the path it was called by.
            line = machine.first_line(list(known[name].version)) or "unknown"
            found[name] = line.removeprefix(known[name].program).strip() if "/" in known[name].program else line
    return found


def ratios(mine, base):
    """requests/s of one subject over another's, round by round; rounds that either lacks are left out."""
    by_round = {one["round"]: one["requests_per_second"] for one in base}
    return [one["requests_per_second"] / by_round[one["round"]] for one in mine if by_round.get(one["round"])]


def row(rounds, base):
    """One subject in one case. With errors there is no ratio: answers that failed are cheap."""
    errors = sum(one["errors"] for one in rounds)
    usable = not errors and base and not any(one["errors"] for one in base)
    quotients = ratios(rounds, base) if usable else []

    def middle(key):
        values = [one[key] for one in rounds if one[key] is not None]
        return median(values) if values else None

    return {
        "requests_per_second": middle("requests_per_second"),
        "ratio": round(median(quotients), 3) if quotients else None,
        "ratio_min": round(min(quotients), 3) if quotients else None,
        "ratio_max": round(max(quotients), 3) if quotients else None,
        "cpu_us_per_request": middle("cpu_us_per_request"),
        "proxy_cpu_busy_percent": middle("proxy_cpu_busy_percent"),
        "rss_bytes": middle("rss_bytes"),
        "p99_us": middle("p99_us"),
        "handshakes": middle("handshakes"),
        "errors": errors,
        "error_text": "; ".join(sorted({one["error_text"] for one in rounds if one["error_text"]})),
        "rounds": rounds,
    }


def summarise(chosen, known, results, failed, about):
    """Everything the report says, as one dictionary."""
    cases = {}
    for name in chosen.cases:
        rounds = results.get(name, {})
        cases[name] = {"title": CASES[name].title, "subjects": {
            subject: row(rounds[subject], rounds.get(BASELINE)) for subject in chosen.subjects if subject in rounds}}
    foreign = sorted(one["foreign_cpu_percent"] for by_subject in results.values()
                     for rounds in by_subject.values() for one in rounds)
    summary = {
        "machine": about,
        "settings": {"rounds": chosen.rounds, "seconds": chosen.seconds, "warmup_seconds": chosen.warmup, "nice": -chosen.nice,
                     "proxy_cpu": machine.PROXY_CPU, "load_cpu": machine.LOAD_CPU},
        "titles": {name: known[name].title for name in chosen.subjects},
        "not_run": failed,
        "foreign_cpu_percent_median": median(foreign) if foreign else 0.0,
        "foreign_cpu_percent_worst": foreign[-1] if foreign else 0.0,
        "cases": cases,
    }
    summary["verdict"] = verdict(summary)
    return summary


def verdict(summary):
    """Ours in one line. In the clear against HAProxy: the two goals, then HTTP/2, and HAProxy's own multiplexed link beside each.
    With mutual TLS against the best of all others, whoever that is."""
    parts = [f"{case}{_in_the_clear(case, by_name['subjects'])}" if not CASES[case].mtls
             else f"{case}{_of_the_best(case, by_name['subjects'])}" for case, by_name in summary["cases"].items()]
    return "verdict: " + "; ".join(parts)


def _no_ratio(ours):
    return f": no ratio ({'has errors' if ours and ours['errors'] else 'not measured'})"


def _goal(case, ratio):
    if case.startswith("h2"):
        return ""
    return " (goal 1.00x met)" if ratio >= 1 else f" (goal 1.00x missed by {1 - ratio:.2f})"


def _in_the_clear(case, found):
    ours, rival = found.get("posthouse"), found.get("haproxy-h2")
    if not ours or ours["ratio"] is None:
        return _no_ratio(ours)
    text = f" {ours['ratio']:.2f}x of HAProxy{_goal(case, ours['ratio'])}"
    if rival and not rival["errors"]:
        quotients = ratios(ours["rounds"], rival["rounds"])
        if quotients:
            text += f", {median(quotients):.2f}x of HAProxy with an HTTP/2 link"
    return text


def _of_the_best(case, found):
    ours = found.get("posthouse")
    if not ours or ours["errors"]:
        return _no_ratio(ours)
    others = {name: ratios(ours["rounds"], one["rounds"]) for name, one in found.items()
              if name != "direct" and not name.startswith("posthouse") and not one["errors"]}
    medians = {name: median(quotients) for name, quotients in others.items() if quotients}
    if not medians:
        return ": no ratio (nobody to compare with)"
    best = min(medians, key=medians.get)
    cpu, theirs = ours["cpu_us_per_request"], found[best]["cpu_us_per_request"]
    text = f" {medians[best]:.2f}x of the best other, {best}{_goal(case, medians[best])}"
    return text + (f", at {cpu / theirs:.2f}x of its CPU a request" if cpu and theirs else "")


def _number(value, form="{:.0f}", scale=1.0):
    return "-" if value is None else form.format(value / scale)


def _lines(case, titles, not_run):
    # Handshakes only where there are any.
    counts = any(one["handshakes"] is not None for one in case["subjects"].values())
    head = ("subject", "requests/s", "x HAProxy (min..max)", "CPU us/req", "RSS MiB", "p99 ms", "CPU busy",
            *(["handshakes"] if counts else []), "errors")
    rows = [head]
    for name, one in case["subjects"].items():
        ratio = "-" if one["ratio"] is None else f"{one['ratio']:.2f} ({one['ratio_min']:.2f}..{one['ratio_max']:.2f})"
        rows.append((titles[name], _number(one["requests_per_second"]), ratio, _number(one["cpu_us_per_request"], "{:.1f}"),
                     _number(one["rss_bytes"], "{:.0f}", 1 << 20), _number(one["p99_us"], "{:.2f}", 1000),
                     _number(one["proxy_cpu_busy_percent"], "{:.0f}%"), *([_number(one["handshakes"])] if counts else []),
                     "0" if not one["errors"] else f"{one['errors']} NOT VALID ({one['error_text']})"))
    widths = [max(len(line[column]) for line in rows) for column in range(len(head) - 1)]
    for line in rows:
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:])]
        yield "  ".join([*cells, line[-1]])
    for name, why in not_run.items():
        if name not in case["subjects"]:
            yield f"{titles[name]}: not run: {why}"


def text(summary):
    """The report as printed; its last line is the verdict."""
    about, chosen = summary["machine"], summary["settings"]
    lines = [
        "",
        f"{about['date']}  {about['cpu']}, {about['cpus']} CPUs, {about['memory_mib']} MiB, Linux {about['kernel']}, "
        f"{about['tcp_congestion_control']}",
        *(f"  {name}: {version}" for name, version in about["versions"].items()),
        f"{chosen['rounds']} rounds of {chosen['seconds']} s after {chosen['warmup_seconds']} s of warm-up; both proxies on "
        f"CPU {chosen['proxy_cpu']}, load and origin on CPU {chosen['load_cpu']}; medians, ratios round by round",
    ]
    for case in summary["cases"].values():
        lines += ["", case["title"], *_lines(case, summary["titles"], summary["not_run"])]
    usual, worst = summary["foreign_cpu_percent_median"], summary["foreign_cpu_percent_worst"]
    if worst > NOISY_PERCENT:
        lines += ["", f"warning: the machine was not quiet: other processes took {usual:.0f}% of a CPU in the median run, "
                  f"{worst:.0f}% in the worst; CPU us/req still compares roughly, requests/s and p99 do not"]
    return "\n".join([*lines, "", summary["verdict"]])
