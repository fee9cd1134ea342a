"""Tests of what the driver computes: `python3 -m unittest discover -s benches` (no proxies, no network)."""

import shutil
import socket
import ssl
import tempfile
import threading
import unittest
from pathlib import Path

import bench
import load
import machine
import mtls
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
            "rss_bytes": 1 << 20, "p99_us": 1000, "handshakes": None, "errors": errors, "error_text": "1 status" if errors else "",
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

    def test_with_mutual_tls_the_best_other_counts_whoever_it_is(self):
        rows = {name: report.row([one(1, rate)], [one(1, 100.0)])
                for name, rate in (("direct", 999.0), ("posthouse", 90.0), ("posthouse-h1", 900.0), ("haproxy", 80.0), ("nginx", 100.0))}
        said = report.verdict({"cases": {"h1-1k-mtls": {"subjects": rows}}})
        self.assertIn("0.90x of the best other, nginx (goal 1.00x missed by 0.10), at 1.00x of its CPU", said)
        rows["nginx"] = report.row([one(1, 100.0, errors=1)], [one(1, 100.0)])
        self.assertIn("1.12x of the best other, haproxy (goal 1.00x met)", report.verdict({"cases": {"h1-1k-mtls": {"subjects": rows}}}))

    def test_handshakes_have_a_column_only_where_they_are_counted(self):
        made, without = {**one(1, 10.0), "handshakes": 64}, one(1, 10.0)
        titles = {"nginx": "nginx"}
        text = list(report._lines({"subjects": {"nginx": report.row([made], [made])}}, titles, {}))
        self.assertTrue("handshakes" in text[0] and " 64 " in text[1], text)
        self.assertNotIn("handshakes", next(report._lines({"subjects": {"nginx": report.row([without], [without])}}, titles, {})))


class Mtls(unittest.TestCase):
    """The proof of a link, held against links that are not what they should be; all within this process, over loopback."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("openssl"):
            raise unittest.SkipTest("no openssl")
        cls.work = tempfile.TemporaryDirectory()
        cls.nodes = mtls.make(cls.work.name)

    @classmethod
    def tearDownClass(cls):
        cls.work.cleanup()

    def prove(self, context, needs_tls=True):
        """Proves a server that answers every request by HTTP/1.1 200, with TLS as `context` says or, without one, none."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def serve():
                while True:
                    try:
                        stream = listener.accept()[0]
                    except OSError:
                        return  # The test is over.
                    try:
                        # With needs_tls off it looks at the first byte, as a permissive server does.
                        if context and (needs_tls or stream.recv(1, socket.MSG_PEEK) == b"\x16"):
                            stream = context.wrap_socket(stream, server_side=True)
                        if stream.recv(4096).startswith(b"GET"):
                            stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    except OSError:
                        pass
                    finally:
                        stream.close()

            server = threading.Thread(target=serve, daemon=True)
            server.start()
            try:
                mtls.prove(mtls.Link("hop b", f"127.0.0.1:{port}", "127.0.0.1", self.nodes["node-a"], "h", "/", False))
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                server.join()

    def server(self, verify=ssl.CERT_REQUIRED, oldest=ssl.TLSVersion.TLSv1_3):
        node = self.nodes["node-b"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(node.cert, node.key)
        context.load_verify_locations(node.ca)
        context.verify_mode, context.minimum_version = verify, oldest
        return context

    def test_mutual_tls_1_3_is_proven(self):
        self.prove(self.server())

    def test_every_lesser_link_is_found_out(self):
        for context, needs_tls, said in (
            (None, False, "without TLS"),
            (self.server(), False, "without TLS"),
            (self.server(verify=ssl.CERT_NONE), True, "without a certificate"),
            (self.server(verify=ssl.CERT_OPTIONAL), True, "without a certificate"),
            (self.server(oldest=ssl.TLSVersion.TLSv1_2), True, "by TLS 1.2"),
        ):
            with self.subTest(said), self.assertRaisesRegex(machine.StartError, said):
                self.prove(context, needs_tls)

    def test_a_server_that_refuses_the_node_is_no_link(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        stranger = mtls.impostor(self.work.name, self.nodes["node-b"])
        context.load_cert_chain(stranger.cert, stranger.key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(stranger.ca)
        with self.assertRaisesRegex(machine.StartError, "refuses a node"):
            self.prove(context)

    def test_service_is_told_from_refusal(self):
        for answer in (b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", bytes((0, 0, 12, 4, 0, 0, 0, 0, 0))):
            self.assertTrue(mtls.serves(answer), answer)
        for answer in (b"", b"HTTP/1.1 400 Bad Request", b"\x15\x03\x03\x00\x02\x02\x46", bytes((0, 0, 8, 7, 0, 0, 0, 0, 0))):
            self.assertFalse(mtls.serves(answer), answer)

    def test_counters_are_summed_and_must_be_there(self):
        self.assertEqual(mtls.total("a: 1\nb: 5\na: 2\n", r"^a: (\d+)$"), 3)
        with self.assertRaises(machine.StartError):
            mtls.total("b: 5\n", r"^a: (\d+)$")


class Plan(unittest.TestCase):
    known = subjects.catalogue("posthouse", "envoy")

    def test_order_rotates_and_each_subject_runs_once_a_round(self):
        chosen = bench.settings({"BENCH_ROUNDS": "3", "BENCH_SUBJECTS": "haproxy,nginx,envoy"}, self.known)
        steps = [(number, subject.name) for number, case, subject in bench.plan(chosen, self.known) if case.name == "h1-1k"]
        self.assertEqual([name for _, name in steps],
                         ["haproxy", "nginx", "envoy", "nginx", "envoy", "haproxy", "envoy", "haproxy", "nginx"])

    def test_cases_are_asked_for_by_name_or_by_group(self):
        asked = lambda text: bench.settings({"BENCH_CASES": text}, self.known).cases
        self.assertEqual(asked("mtls"), ["h1-1k-mtls", "h1-64k-mtls", "h2-1k-mtls"])
        self.assertEqual(asked("h2-1k plain"), ["h2-1k", "h1-1k", "h1-64k"])
        self.assertEqual(asked(""), list(subjects.CASES))

    def test_bad_settings_name_the_variable(self):
        for env in ({"BENCH_ROUNDS": "0"}, {"BENCH_SECONDS": "x"}, {"BENCH_NICE": "21"}, {"BENCH_CASES": "h3"}, {"BENCH_SUBJECTS": "squid"}):
            with self.subTest(env), self.assertRaisesRegex(bench.BadSettings, next(iter(env))):
                bench.settings(env, self.known)


if __name__ == "__main__":
    unittest.main()
