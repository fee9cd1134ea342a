//! How a metric is documented: each crate lists its own, and the reference page is held against the lists.

/// One metric's documentation.
#[derive(Clone, Copy, Debug)]
pub struct MetricDoc {
    /// Its name, with its unit at the end.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}
