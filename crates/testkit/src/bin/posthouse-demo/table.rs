//! What the demo prints, as plain lines: the live table, the commands to try by hand, the summary. Lines that begin in the
//! first column are headings; `screen.rs` makes them bold.

use std::path::Path;
use std::time::Duration;

use crate::stats::{Row, Stats};
use crate::topology::{NODES, SERVICES, pods};

/// The live table.
pub(crate) fn live(stats: &Stats, elapsed: Duration, ended: &[String]) -> Vec<String> {
    let seconds = elapsed.as_secs();
    let clock = format!("{}:{:02}", seconds / 60, seconds % 60);
    let rate = stats.requests() as f64 / elapsed.as_secs_f64().max(1.0);
    let verdict = match stats.failures() {
        0 if stats.requests() == 0 => "none answered yet".to_owned(),
        0 => "all succeeded".to_owned(),
        failures => format!("{} FAILED", thousands(failures)),
    };
    let mut lines = vec![
        format!("{:<73}{clock:>6}", "Posthouse demo: 3 nodes, 3 proxies and 9 pods on this machine"),
        format!(
            "  {} requests, {rate:.0} a second, {verdict}; {} crossed a link",
            thousands(stats.requests()),
            percent(stats.crossed())
        ),
        "  links: TLS 1.3, each node proves its name to the other by its certificate".to_owned(),
        String::new(),
        format!("{:<12}{COLUMNS}   asked by", "  to"),
    ];
    for service in SERVICES {
        let row = &stats.by_service[service.index];
        lines.push(format!("  {:<9}{}   {}", service.name, cells(row), service.asked_by));
    }
    lines.push(String::new());
    let receivers: String = NODES.iter().map(|node| format!("{:>9}", node.name)).collect();
    lines.push(format!("{:<12}{COLUMNS}   to{receivers}", "  from"));
    for node in NODES {
        let answers = &stats.answers[node.index];
        let all: u64 = answers.iter().sum();
        let shares: String = answers.iter().map(|count| format!("{:>9}", share(*count, all))).collect();
        let cells = cells(&stats.by_sender[node.index]);
        lines.push(format!("  {:<9}{cells}     {shares}", node.name));
    }
    if !ended.is_empty() {
        lines.push(String::new());
        lines.push(format!("  ended: {}", ended.join(", ")));
    }
    if !stats.reasons.is_empty() {
        lines.push(String::new());
        lines.extend(reasons(stats));
    }
    lines
}

const COLUMNS: &str = "requests  success      p50      p99";

fn cells(row: &Row) -> String {
    let success = match row.requests {
        0 => "-".to_owned(),
        requests => percent((requests - row.failures) as f64 / requests as f64),
    };
    format!(
        "{:>9}{success:>9}{:>9}{:>9}",
        thousands(row.requests),
        millis(row.latency.quantile(0.5)),
        millis(row.latency.quantile(0.99))
    )
}

/// The commands to try by hand. `victim` is a pod to kill, with its process id.
pub(crate) fn commands(source: &Path, certificates: &Path, logs: &Path, victim: Option<(&str, u32)>) -> Vec<String> {
    let outbound = format!("http://{}", NODES[0].outbound());
    let (direct, admin, metrics) = (NODES[0].outbound(), NODES[0].admin(), NODES[0].metrics());
    let mut lines = vec![
        "Try it in another terminal, on node-a (b is 127.0.2.1, c is 127.0.3.1)".to_owned(),
        format!("  curl -x {outbound} http://hello.demo/"),
        format!("  curl --proxytunnel -x {outbound} http://hello.demo/"),
        format!("  curl --http2-prior-knowledge --connect-to ::{direct} http://echo.demo/x"),
        format!("  http_proxy={outbound} e2e/demo/say-hello.sh    # gRPC from Python"),
        format!("  curl http://{admin}/services    # also /peers, /identity, /config"),
        format!("  curl http://{metrics}/metrics"),
    ];
    if let Some((name, pid)) = victim {
        lines.push(format!("  kill -9 {pid}    # {name} dies; its requests go elsewhere"));
    }
    lines.push(format!("  manifests (edit them): {}", source.display()));
    lines.push(format!("  certificates of the nodes: {}", certificates.display()));
    lines.push(format!("  logs: {}", logs.display()));
    lines.push("Ctrl-C ends it".to_owned());
    lines
}

/// The last words of a run.
pub(crate) fn summary(stats: &Stats, problems: &[String]) -> Vec<String> {
    let counts: Vec<String> = SERVICES
        .iter()
        .map(|service| format!("{} {}", service.name, thousands(stats.by_service[service.index].requests)))
        .collect();
    let mut lines = vec![
        "Summary".to_owned(),
        format!("  {} services: {}", SERVICES.len(), counts.join(", ")),
        format!("  {} nodes, {} of {} pods answered", NODES.len(), stats.pods.len(), pods().count()),
        format!("  {} requests, {} failed", thousands(stats.requests()), thousands(stats.failures())),
        format!("  {} crossed a link", percent(stats.crossed())),
    ];
    lines.extend(problems.iter().map(|problem| format!("  PROBLEM: {problem}")));
    lines.extend(reasons(stats));
    lines
}

/// What keeps a run from being a success; nothing when it is one.
pub(crate) fn problems(stats: &Stats, ended: &[String]) -> Vec<String> {
    let mut problems = Vec::new();
    if stats.failures() > 0 {
        problems.push(format!("{} requests failed", thousands(stats.failures())));
    }
    for service in SERVICES {
        if stats.by_service[service.index].requests == 0 {
            problems.push(format!("no request to {}", service.name));
        }
    }
    if stats.crossed() <= 0.5 {
        problems.push("no more than half of the requests crossed a link".to_owned());
    }
    let silent: Vec<String> = pods().map(|pod| pod.name()).filter(|name| !stats.pods.contains(name)).collect();
    if !silent.is_empty() {
        problems.push(format!("these pods never answered: {}", silent.join(", ")));
    }
    if !ended.is_empty() {
        problems.push(format!("these processes ended: {}", ended.join(", ")));
    }
    problems
}

fn reasons(stats: &Stats) -> impl Iterator<Item = String> {
    stats.reasons.iter().map(|(reason, count)| format!("  {} x {reason}", thousands(*count)))
}

/// `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rounded down, so that one failure in a million does not read as 100 %.
fn percent(share: f64) -> String {
    let hundredths = (share * 10_000.0 + 1e-6).floor() / 100.0;
    if hundredths >= 100.0 { "100 %".to_owned() } else { format!("{hundredths:.2} %") }
}

fn share(count: u64, all: u64) -> String {
    if all == 0 { "-".to_owned() } else { format!("{:.0} %", count as f64 * 100.0 / all as f64) }
}

fn millis(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.1} ms", duration.as_secs_f64() * 1000.0))
}

#[cfg(test)]
mod tests {
    use posthouse_testkit::Place;

    use super::*;

    fn good() -> Stats {
        let mut stats = Stats::default();
        for sender in NODES {
            for pod in pods() {
                let place = Place::new(pod.name(), pod.node.name);
                stats.count(pod.service, sender, Duration::from_millis(2), Ok(place));
            }
        }
        stats
    }

    #[test]
    fn a_run_in_which_everything_answered_has_no_problem_and_each_defect_is_one() {
        assert_eq!(problems(&good(), &[]), Vec::<String>::new());
        let mut failed = good();
        failed.count(SERVICES[0], NODES[0], Duration::ZERO, Err("status 502".to_owned()));
        assert_eq!(problems(&failed, &[]), ["1 requests failed"]);
        let mut silent = good();
        silent.pods.remove("echo-b");
        assert_eq!(problems(&silent, &[]), ["these pods never answered: echo-b"]);
        let mut home = good();
        home.answers = [[9, 0, 0], [0, 9, 0], [0, 0, 9]];
        assert_eq!(problems(&home, &[]), ["no more than half of the requests crossed a link"]);
        assert_eq!(problems(&good(), &["x".to_owned()]), ["these processes ended: x"]);
        assert_eq!(problems(&Stats::default(), &[]).len(), 5, "nothing asked: 3 services, no link, no pod");
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let lines = live(&good(), Duration::from_secs(75), &[]);
        assert!(lines[0].ends_with("1:15") && lines.iter().all(|line| line.len() < 80));
        let end_of = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
        assert_eq!(end_of(&lines[4], "success"), end_of(&lines[5], "100 %"));
        assert_eq!(end_of(&lines[9], "success"), end_of(&lines[10], "100 %"));
        assert_eq!(end_of(&lines[9], "node-c"), Some(lines[10].len()));
        let commands =
            commands(Path::new("/tmp/m"), Path::new("/tmp/c"), Path::new("/tmp/l"), Some(("echo-b", 4_194_304)));
        assert!(commands.iter().all(|line| line.len() < 80), "{commands:?}");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(thousands).each_ref().map(|s| &**s)
        );
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.999_999), "99.99 %");
        assert_eq!(percent(2.0 / 3.0), "66.66 %");
    }
}
