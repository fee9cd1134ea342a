//! Prometheus' text format for values that are read when somebody asks. Source: "Exposition formats", version 0.0.4.

use std::fmt::Write;

use posthouse_model::MetricDoc;

/// A page of metrics in the making.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Writes the metric's head and its samples: label values in the order of the metric's labels, and the value.
    pub(super) fn family<'a>(&mut self, doc: &MetricDoc, samples: impl IntoIterator<Item = (Vec<&'a str>, f64)>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "# HELP {} {}\n# TYPE {} {}", doc.name, doc.help, doc.name, doc.kind);
        for (values, value) in samples {
            debug_assert_eq!(values.len(), doc.labels.len(), "{}: one value for each label", doc.name);
            self.text.push_str(doc.name);
            for (at, (label, value)) in doc.labels.iter().zip(values).enumerate() {
                let _ = write!(self.text, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escape(value));
            }
            self.text.push_str(if doc.labels.is_empty() { "" } else { "}" });
            let _ = writeln!(self.text, " {value}");
        }
        self.text.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_plain_metrics_have_no_braces() {
        let mut page = Page::default();
        let plain = MetricDoc { name: "a_total", kind: "counter", labels: &[], help: "Plain." };
        let labelled = MetricDoc { name: "b", kind: "gauge", labels: &["x", "y"], help: "Two." };
        page.family(&plain, [(vec![], 3.0)]);
        page.family(&labelled, [(vec!["q\"\\\n", "2"], 0.25)]);
        assert_eq!(
            page.finish(),
            "# HELP a_total Plain.\n# TYPE a_total counter\na_total 3\n\n\
             # HELP b Two.\n# TYPE b gauge\nb{x=\"q\\\"\\\\\\n\",y=\"2\"} 0.25\n\n"
        );
    }
}
