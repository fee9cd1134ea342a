"""Tests of what the driver computes: `python3 -m unittest discover -s benches` (no proxies, no network)."""

import tempfile
import unittest
from pathlib import Path

import bench
import load
import report
import subjects

WRK = 'Running 5s test\n\nJSON {{"requests":100,"bytes":{bytes},"duration_us":2000000,"p50_us":9,"p99_us":70,' \
      '"status":{status},"connect":0,"read":0,"write":0,"timeout":{timeout}}}\n'
H2LOAD = """finished in 2.00s, 2.00 req/s, 1KB/s
requests: 4 total, 6 started, 4 done, {good} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, {failed} 5xx
traffic: 1MB (9999) total, 1KB (999) headers (space savings 9.00%), 4KB ({data}) data
"""


def one(number, rate, errors=0):
    return {"round": number, "requests_per_second": rate, "cpu_us_per_request": 10.0, "proxy_cpu_busy_percent": 99.0,
            "rss_bytes": 1 << 20, "p99_us": 1000, "errors": errors, "error_text": "1 status" if errors else "",
            "foreign_cpu_percent": 0.0}


class Load(unittest.TestCase):
    case, h2 = subjects.CASES["h1-1k"], subjects.CASES["h2-1k"]

    def test_wrk_counts_every_kind_of_error(self):
        good = load._wrk(WRK.format(bytes=200000, status=0, timeout=0), self.case, 0.0)
        self.assertEqual((good.requests, good.seconds, good.p99_us, good.errors), (100, 2.0, 70, 0))
        bad = load._wrk(WRK.format(bytes=200000, status=3, timeout=2), self.case, 0.0)
        self.assertEqual((bad.errors, bad.error_text), (5, "3 status, 2 timeout"))

    def test_cut_bodies_are_errors(self):
        self.assertEqual(load._wrk(WRK.format(bytes=5000, status=0, timeout=0), self.case, 0.0).error_text, "short bodies")
        self.assertEqual(self.h2load(good=4, failed=0, data=1024).error_text, "short bodies")

    def test_h2load_counts_failures_and_takes_p99_from_its_log(self):
        good = self.h2load(good=4, failed=0, data=4096)
        self.assertEqual((good.requests, good.p99_us, good.errors), (4, 400, 0))
        self.assertGreater(self.h2load(good=3, failed=1, data=4096).errors, 0)

    def test_unreadable_output_is_an_error(self):
        with self.assertRaises(load.LoadError):
            load._wrk("wrk: something else", self.case, 0.0)

    def h2load(self, **values):
        with tempfile.TemporaryDirectory() as work:
            log = Path(work) / "log"
            log.write_text("".join(f"1\t200\t{n}\n" for n in (400, 100, 300, 200)))
            return load._h2load(H2LOAD.format(**values), log, self.h2, 2, 0.0)


class Report(unittest.TestCase):
    def test_ratios_are_taken_round_by_round(self):
        # The machine halves its speed in round 2; the quotient of the medians would be 1.0.
        mine = report.row([one(1, 200.0), one(2, 110.0), one(3, 220.0)], [one(1, 100.0), one(2, 50.0), one(3, 200.0)])
        self.assertEqual((mine["ratio"], mine["ratio_min"], mine["ratio_max"]), (2.0, 1.1, 2.2))

    def test_errors_on_either_side_leave_no_ratio(self):
        self.assertIsNone(report.row([one(1, 200.0, errors=1)], [one(1, 100.0)])["ratio"])
        self.assertIsNone(report.row([one(1, 200.0)], [one(1, 100.0, errors=1)])["ratio"])

    def test_the_verdict_names_a_miss_and_the_stronger_rival(self):
        rows = {name: report.row([one(1, rate)], [one(1, 100.0)])
                for name, rate in (("posthouse", 90.0), ("haproxy", 100.0), ("haproxy-h2", 180.0))}
        said = report.verdict({"cases": {"h1-1k": {"subjects": rows}}})
        self.assertIn("0.90x of HAProxy (goal 1.00x missed by 0.10)", said)
        self.assertIn("0.50x of HAProxy with an HTTP/2 link", said)


class Plan(unittest.TestCase):
    known = subjects.catalogue("posthouse", "envoy")

    def test_order_rotates_and_each_subject_runs_once_a_round(self):
        chosen = bench.settings({"BENCH_ROUNDS": "3", "BENCH_SUBJECTS": "haproxy,nginx,envoy"}, self.known)
        steps = [(number, subject.name) for number, case, subject in bench.plan(chosen, self.known) if case.name == "h1-1k"]
        self.assertEqual([name for _, name in steps],
                         ["haproxy", "nginx", "envoy", "nginx", "envoy", "haproxy", "envoy", "haproxy", "nginx"])

    def test_bad_settings_name_the_variable(self):
        for env in ({"BENCH_ROUNDS": "0"}, {"BENCH_SECONDS": "x"}, {"BENCH_NICE": "21"}, {"BENCH_CASES": "h3"}, {"BENCH_SUBJECTS": "squid"}):
            with self.subTest(env), self.assertRaisesRegex(bench.BadSettings, next(iter(env))):
                bench.settings(env, self.known)


if __name__ == "__main__":
    unittest.main()
