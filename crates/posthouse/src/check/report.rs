//! How findings are written: as text while they come, or as one JSON object at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{Finding, Verdict};
use crate::args::{OutputFormat, VERSION};

/// As many names of nodes stand in a line; JSON has them all.
const MAX_NAMES: usize = 5;

/// What was there to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    BeforeInstallation,
    Installed,
}

/// A node, for whoever reads the JSON by program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeSummary {
    pub(super) name: String,
    pub(super) pod: String,
    /// `None`: its proxy could not be asked.
    pub(super) version: Option<String>,
    pub(super) ready: Option<bool>,
}

/// All that was found.
pub(super) struct Report<W> {
    format: OutputFormat,
    colours: bool,
    namespace: String,
    mode: Mode,
    findings: Vec<Finding>,
    nodes: Vec<NodeSummary>,
    out: W,
    /// The first failure to write; the rest is not tried.
    broken: Option<io::Error>,
}

impl<W: Write> Report<W> {
    pub(super) fn new(format: OutputFormat, colours: bool, namespace: &str, out: W) -> Self {
        Self {
            format,
            colours,
            namespace: namespace.to_owned(),
            mode: Mode::BeforeInstallation,
            findings: Vec::new(),
            nodes: Vec::new(),
            out,
            broken: None,
        }
    }

    pub(super) fn mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub(super) fn nodes(&mut self, nodes: Vec<NodeSummary>) {
        self.nodes = nodes;
    }

    /// Takes the findings of one check; in text they appear at once.
    pub(super) fn add(&mut self, findings: Vec<Finding>) {
        if self.format == OutputFormat::Text {
            let text = lines(&findings, self.colours);
            self.write(&text);
        }
        self.findings.extend(findings);
    }

    fn write(&mut self, text: &str) {
        if self.broken.is_none() {
            self.broken = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).err();
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// What could not be looked at, though it is there.
    fn unseen(&self) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::Skipped && !finding.usual).count()
    }

    /// The worst of all findings.
    fn verdict(&self) -> Verdict {
        let worst = self.findings.iter().filter(|finding| !finding.usual).map(|finding| finding.verdict).max();
        worst.unwrap_or(Verdict::Ok)
    }

    /// Writes the verdict and gives it. A reader that has left is no error.
    pub(super) fn finish(mut self) -> io::Result<Verdict> {
        let text = match self.format {
            OutputFormat::Text => format!("\n{}\n", self.conclusion()),
            OutputFormat::Json => self.json()?,
        };
        self.write(&text);
        match self.broken.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(self.verdict()),
        }
    }

    fn conclusion(&self) -> String {
        let number = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let (fails, warnings, unseen) = (self.count(Verdict::Fail), self.count(Verdict::Warn), self.unseen());
        let mut verdict = match (fails, warnings, unseen, self.mode) {
            (0, 0, 0, Mode::Installed) => "everything is in order".to_owned(),
            (0, 0, 0, Mode::BeforeInstallation) => "everything is in order for an installation".to_owned(),
            (0, 0, _, _) => "no problem found".to_owned(),
            (0, _, _, _) => format!("no problem, {}", number(warnings, "warning")),
            (_, 0, _, _) => number(fails, "problem"),
            _ => format!("{}, {}", number(fails, "problem"), number(warnings, "warning")),
        };
        if unseen > 0 {
            verdict.push_str(&format!(", but {} could not be looked at", number(unseen, "check")));
        }
        let skipped = self.count(Verdict::Skipped);
        let checks = number(self.findings.len() - skipped, "check");
        match skipped - unseen {
            0 => format!("{verdict} ({checks})"),
            usual => format!("{verdict} ({checks}, {usual} skipped)"),
        }
    }

    fn json(&self) -> io::Result<String> {
        let object = json!({
            "verdict": self.verdict(),
            "mode": self.mode,
            "namespace": self.namespace,
            "version": VERSION,
            "nodes": self.nodes,
            "checks": self.findings,
        });
        let mut text = escape(&serde_json::to_string_pretty(&object)?);
        text.push('\n');
        Ok(text)
    }
}

/// One line for each thing that was found, and a second one with what helps. What is the same on several nodes is one line.
fn lines(findings: &[Finding], colours: bool) -> String {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    let mut known: BTreeMap<(&str, &str, Option<&str>, Verdict), usize> = BTreeMap::new();
    for finding in findings {
        let key = (finding.id.as_str(), finding.message.as_str(), finding.hint.as_deref(), finding.verdict);
        match known.get(&key) {
            Some(at) if finding.subject.is_some() => groups[*at].push(finding),
            _ => {
                known.insert(key, groups.len());
                groups.push(vec![finding]);
            }
        }
    }
    let mut text = String::new();
    for group in groups {
        let Finding { id, verdict, message, hint, .. } = group[0];
        let (word, colour) = match verdict {
            Verdict::Ok => ("ok  ", "32"),
            Verdict::Skipped => ("skip", "2"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("FAIL", "31;1"),
        };
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        // What others have written (a kubelet, a log) must not move the cursor.
        let line = plain(&format!("{:<11}  {}{message}{}", id.as_str(), subjects(&group), took(&group)));
        text.push_str(&format!("{word}  {line}\n"));
        if let Some(hint) = hint {
            text.push_str(&format!("                   hint: {}\n", plain(hint)));
        }
    }
    text
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if is_unseen(c) { ' ' } else { c }).collect()
}

/// JSON's own escapes are for what JSON forbids in a string, which leaves a terminal what it would act upon. Outside of
/// strings there is none of it but line breaks.
fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c != '\n' && is_unseen(c) => {
                let mut units = [0; 2];
                text.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            c => text.push(c),
        }
    }
    text
}

/// What a terminal acts upon instead of showing it: control characters, line and paragraph separators, and the format
/// characters (Unicode 16, general category Cf: zero widths, and marks that turn the direction of the text around).
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2064}'
                | '\u{2066}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0001}'
                | '\u{e0020}'..='\u{e007f}'
        )
}

/// The nodes of a line.
fn subjects(group: &[&Finding]) -> String {
    let names: Vec<&str> =
        group.iter().filter_map(|finding| finding.subject.as_deref()?.strip_prefix("node/")).collect();
    match names.as_slice() {
        [] => String::new(),
        names if names.len() <= MAX_NAMES => format!("{}: ", names.join(", ")),
        names if group[0].verdict == Verdict::Ok => format!("{} nodes: ", names.len()),
        names => format!("{} nodes ({}, …): ", names.len(), names.get(..MAX_NAMES).unwrap_or_default().join(", ")),
    }
}

fn took(group: &[&Finding]) -> String {
    let times = || group.iter().filter_map(|finding| finding.took);
    let millis = |took: Duration| took.as_millis().max(1);
    match (times().min(), times().max()) {
        (Some(least), Some(most)) if millis(least) == millis(most) => format!(" ({} ms)", millis(most)),
        (Some(least), Some(most)) => format!(" ({}–{} ms)", millis(least), millis(most)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Id;
    use super::*;

    fn written(format: OutputFormat, mode: Mode, findings: Vec<Finding>) -> (String, Verdict) {
        let mut out = Vec::new();
        let mut report = Report::new(format, false, "mesh", &mut out);
        report.mode(mode);
        report.add(findings);
        let verdict = report.finish().unwrap();
        (String::from_utf8(out).unwrap(), verdict)
    }

    #[test]
    fn equal_findings_of_nodes_share_a_line() {
        let mut findings = vec![Finding::ok(Id::Api, "answers").took(Duration::from_millis(3))];
        for node in 0..7 {
            let took = Duration::from_millis(10 + node);
            findings.push(Finding::ok(Id::Version, "0.1.0").on(&format!("n{node}")).took(took));
        }
        findings.push(Finding::fail(Id::Probe, "503").on("n1").hint("look"));
        findings.push(Finding::fail(Id::Probe, "503").on("n2").hint("look"));
        findings.push(Finding::warn(Id::Probe, "slow").on("n3"));
        let (text, verdict) = written(OutputFormat::Text, Mode::Installed, findings);
        let wanted = "\
ok    api          answers (3 ms)
ok    version      7 nodes: 0.1.0 (10–16 ms)
FAIL  probe        n1, n2: 503
                   hint: look
warn  probe        n3: slow

2 problems, 1 warning (11 checks)
";
        assert_eq!(text, wanted);
        assert_eq!(verdict, Verdict::Fail);
    }

    #[test]
    fn failures_of_many_nodes_name_some() {
        let findings = (0..9).map(|node| Finding::fail(Id::Node, "no").on(&format!("n{node}"))).collect();
        let (text, _) = written(OutputFormat::Text, Mode::Installed, findings);
        assert!(text.starts_with("FAIL  node         9 nodes (n0, n1, n2, n3, n4, …): no\n"), "{text}");
    }

    #[test]
    fn the_verdict_is_plain() {
        let ok = || Finding::ok(Id::Api, "a");
        let skipped = || Finding::skipped(Id::Ports, "b");
        let not_yet = || Finding::not_yet(Id::Daemonset, "b");
        let warn = || Finding::warn(Id::Ports, "c");
        let fail = || Finding::fail(Id::Api, "d");
        let (before, after) = (Mode::BeforeInstallation, Mode::Installed);
        let unseen = "no problem found, but 2 checks could not be looked at (1 check, 1 skipped)";
        for (mode, findings, last, wanted) in [
            (after, vec![ok(), ok()], "everything is in order (2 checks)", Verdict::Ok),
            (before, vec![ok()], "everything is in order for an installation (1 check)", Verdict::Ok),
            (
                before,
                vec![ok(), not_yet()],
                "everything is in order for an installation (1 check, 1 skipped)",
                Verdict::Ok,
            ),
            (
                after,
                vec![ok(), skipped()],
                "no problem found, but 1 check could not be looked at (1 check)",
                Verdict::Skipped,
            ),
            (before, vec![ok(), skipped(), not_yet(), skipped()], unseen, Verdict::Skipped),
            (after, vec![ok(), warn()], "no problem, 1 warning (2 checks)", Verdict::Warn),
            (
                after,
                vec![skipped(), warn()],
                "no problem, 1 warning, but 1 check could not be looked at (1 check)",
                Verdict::Warn,
            ),
            (after, vec![fail(), not_yet()], "1 problem (1 check, 1 skipped)", Verdict::Fail),
        ] {
            let (text, verdict) = written(OutputFormat::Text, mode, findings.clone());
            assert_eq!(text.lines().last(), Some(last));
            assert_eq!(verdict, wanted, "{last}");
            let (text, _) = written(OutputFormat::Json, mode, findings);
            let object: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(object["verdict"], json!(wanted), "{last}");
        }
    }

    #[test]
    fn foreign_words_cannot_move_the_cursor() {
        let (text, _) = written(OutputFormat::Text, Mode::Installed, vec![Finding::fail(Id::Node, "a\x1b[2Jb\nc")]);
        assert!(text.starts_with("FAIL  node         a [2Jb c\n"), "{text:?}");

        // The bell, DEL, CSI as one character, a word from right to left, a word without width, a tag beyond 16 bits.
        let words = "a\u{7}b\u{7f}c\u{9b}d\u{202e}e\u{200b}f\u{2028}g\u{e0041}h, ä ✓";
        let finding = || vec![Finding::fail(Id::Node, words).hint(words)];
        let (text, _) = written(OutputFormat::Text, Mode::Installed, finding());
        assert!(text.contains("a b c d e f g h, ä ✓\n"), "{text:?}");
        let (text, _) = written(OutputFormat::Json, Mode::Installed, finding());
        assert!(text.contains(r"a\u0007b\u007fc\u009bd\u202ee\u200bf\u2028g\udb40\udc41h, ä ✓"), "{text:?}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["checks"][0]["message"], &object["checks"][0]["hint"]), (&json!(words), &json!(words)));
    }

    #[test]
    fn json_has_everything() {
        let finding = Finding::warn(Id::Links, "m").on("n1").hint("h").took(Duration::from_micros(1234));
        let (text, verdict) = written(OutputFormat::Json, Mode::Installed, vec![finding]);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(verdict, Verdict::Warn);
        assert_eq!(object["verdict"], "warn");
        assert_eq!((&object["mode"], &object["namespace"]), (&json!("installed"), &json!("mesh")));
        let wanted = json!({"id": "links", "verdict": "warn", "subject": "node/n1", "message": "m", "hint": "h", "took_ms": 1.2});
        assert_eq!(object["checks"][0], wanted);
    }
}
